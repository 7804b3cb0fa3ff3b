"""Both experts in one prompt: side by side on two devices, in turn on one. The CPU has two names for this."""

import time

from wan_train.core.train.events import EventReader
from wan_train.tests.host.graphs import two_stages


def spans(host, name):
    """(first step, last step) in seconds for each stage."""
    found = {}
    for folder in (host.base / "output" / "wan_train" / "runs").glob(f"{name}_*"):
        times = [e["time"] for e in EventReader(folder / "events.jsonl").read() if e["event"] == "step"]
        found[folder.name.split("_")[1]] = (times[0], times[-1])
    return found


def test_one_device_trains_in_turn(host):
    prompt = two_stages(lora_name="turn", steps=30, seed=12)
    entry = host.run(prompt, timeout=200)
    assert entry["status"]["status_str"] == "success", entry["status"]
    times = spans(host, "turn")
    first, second = sorted(times.values())
    assert first[1] < second[0]
    texts = [e.data["line"] for e in host.events if e.type == "wan_train.update"]
    assert any("waiting for cpu: another run is training on it" in text for text in texts)


def test_two_devices_train_at_the_same_time_and_stop_ends_both(host):
    """Each makes steps that the other, which has begun, has not seen the end of."""
    prompt = two_stages(lora_name="halt", steps=5000, seed=13, high={"device": "cpu:0"}, low={"device": "cpu:1"})
    prompt_id = host.queue(prompt)
    runs = host.base / "output" / "wan_train" / "runs"
    end = time.monotonic() + 240
    while not _both_have_made_steps(runs):
        assert time.monotonic() < end, "one of the two never began"
        time.sleep(0.1)
    host.interrupt(prompt_id)
    entry = host.wait(prompt_id)
    assert entry["status"]["messages"][-1][0] == "execution_interrupted"
    for folder in runs.glob("halt_*"):
        events = EventReader(folder / "events.jsonl").read()
        assert events[-1]["event"] == "stopped", folder  # and not at its end
        assert list((folder / "checkpoints").glob("step-*"))


def _both_have_made_steps(runs):
    seen = [EventReader(folder / "events.jsonl").read() for folder in runs.glob("halt_*")]
    return len(seen) == 2 and all(any(event["event"] == "step" for event in events) for events in seen)
