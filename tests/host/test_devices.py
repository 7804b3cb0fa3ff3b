"""Both experts in one prompt: side by side on two devices, in turn on one. The CPU has two names for this."""

import pytest
from wan_train.core.train.events import EventReader
from wan_train.core.train.run_folder import RunFolder
from wan_train.tests.host.graphs import one_stage, two_stages
from wan_train.tests.host.runs import until
from wan_train.tests.turns import turn_on_cpu, waits_of


def run_of_both(host, prompt, name):
    """Run a prompt whose two trainings begin on one device at the same time; its history."""
    runs = host.base / "output" / "wan_train" / "runs"
    with turn_on_cpu(host.base / "tmp") as turn:
        assert turn.acquire()
        prompt_id = host.queue(prompt)
        until(lambda: [waits_of(folder / "events.jsonl") for folder in runs.glob(f"{name}_*")] == [1, 1], "both wait")
    return host.wait(prompt_id)


def spans(host, name):
    """(first step, last step) in seconds for each stage."""
    found = {}
    for folder in (host.base / "output" / "wan_train" / "runs").glob(f"{name}_*"):
        times = [e["time"] for e in EventReader(folder / "events.jsonl").read() if e["event"] == "step"]
        found[folder.name.split("_")[1]] = (times[0], times[-1])
    return found


def test_one_device_trains_in_turn(host):
    prompt = two_stages(lora_name="turn", steps=30, seed=12)
    entry = run_of_both(host, prompt, "turn")
    assert entry["status"]["status_str"] == "success", entry["status"]
    times = spans(host, "turn")
    first, second = sorted(times.values())
    assert first[1] < second[0]
    texts = [e.data["line"] for e in host.events if e.type == "wan_train.update"]
    assert any("waiting for cpu: another run is training on it" in text for text in texts)


@pytest.mark.grid(3, "turns of two processes")
def test_one_device_is_handed_over_where_both_nodes_say_so(host):
    """Each has a run of its own: queued again without turns, nothing is left to train."""
    settings = {"lora_name": "turns", "steps": 30, "seed": 112}
    entry = run_of_both(host, two_stages(**settings, alternate_every=5), "turns")
    assert entry["status"]["status_str"] == "success", entry["status"]
    lines = {e.data["line"] for e in host.events if e.type == "wan_train.update"}
    assert "the other expert is being trained" in lines
    first, second = sorted(spans(host, "turns").values())
    assert second[0] < first[1], "the second began before the first was over"
    runs = [RunFolder(path) for path in (host.base / "output" / "wan_train" / "runs").glob("turns_*")]
    turns = [event["step"] for run in runs for event in events_of(run.path) if event["event"] == "turn"]
    assert len(turns) > 3
    assert all(step % 5 == 0 for step in turns)
    before = [(run.finished_lora(30), len(events_of(run.path))) for run in runs]
    assert len(before) == 2
    assert None not in {lora for lora, _ in before}
    entry = host.run(two_stages(**settings))
    assert entry["status"]["status_str"] == "success", entry["status"]
    assert [(run.finished_lora(30), len(events_of(run.path))) for run in runs] == before


def test_two_devices_train_at_the_same_time_and_stop_ends_both(host):
    """Each makes steps that the other, which has begun, has not seen the end of."""
    prompt = two_stages(lora_name="halt", steps=100_000, seed=13, high={"device": "cpu:0"}, low={"device": "cpu:1"})
    prompt_id = host.queue(prompt)
    runs = host.base / "output" / "wan_train" / "runs"
    until(lambda: _both_have_made_steps(runs), "steps of both")
    host.interrupt(prompt_id)
    entry = host.wait(prompt_id)
    assert entry["status"]["messages"][-1][0] == "execution_interrupted"
    for folder in runs.glob("halt_*"):
        events = EventReader(folder / "events.jsonl").read()
        assert events[-1]["event"] == "stopped", folder  # and not at its end
        assert list((folder / "checkpoints").glob("step-*"))


@pytest.mark.grid(3, "several devices")
def test_one_run_over_two_devices_is_stopped_and_goes_on(host):
    """In a list of the widget: a process for each, whose batches are those of one step."""
    prompt = one_stage(lora_name="many", steps=100_000, seed=14, device="cpu:0,cpu:1", checkpoint_every=1000)
    prompt_id = host.queue(prompt)
    runs = host.base / "output" / "wan_train" / "runs"
    until(
        lambda: any(event["event"] == "step" for folder in runs.glob("many_*") for event in events_of(folder)), "a step"
    )
    host.interrupt(prompt_id)
    assert host.wait(prompt_id)["status"]["messages"][-1][0] == "execution_interrupted"
    (folder,) = runs.glob("many_*")
    done = max(event.get("step", 0) for event in events_of(folder))
    assert events_of(folder)[-1]["event"] == "stopped"
    assert RunFolder(folder).read_job().loop.gradient_accumulation == 2

    entry = host.run(one_stage(lora_name="many", steps=done + 2, seed=14, device="cpu:0,cpu:1"))
    assert entry["status"]["status_str"] == "success", entry["status"]
    assert [event["step"] for event in events_of(folder) if event["event"] == "start"][-1] == done
    assert RunFolder(folder).finished_lora(done + 2)


def events_of(folder):
    return EventReader(folder / "events.jsonl").read()


def _both_have_made_steps(runs):
    seen = [EventReader(folder / "events.jsonl").read() for folder in runs.glob("halt_*")]
    return len(seen) == 2 and all(any(event["event"] == "step" for event in events) for events in seen)
