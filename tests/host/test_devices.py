"""Both experts in one prompt: side by side on two devices, in turn on one. The CPU has two names for this."""

from wan_train.core.train.events import EventReader
from wan_train.tests.host.graphs import two_stages


def spans(host, name):
    """(first step, last step) in seconds for each stage."""
    found = {}
    for folder in (host.base / "output" / "wan_train" / "runs").glob(f"{name}_*"):
        times = [e["time"] for e in EventReader(folder / "events.jsonl").read() if e["event"] == "step"]
        found[folder.name.split("_")[1]] = (times[0], times[-1])
    return found


def test_two_devices_train_at_the_same_time(host):
    prompt = two_stages(lora_name="both", steps=30, seed=11, high={"device": "cpu:0"}, low={"device": "cpu:1"})
    entry = host.run(prompt, timeout=200)
    assert entry["status"]["status_str"] == "success", entry["status"]
    times = spans(host, "both")
    assert set(times) == {"high", "low"}
    overlap = min(t[1] for t in times.values()) - max(t[0] for t in times.values())
    assert overlap > 0, times


def test_one_device_trains_in_turn(host):
    prompt = two_stages(lora_name="turn", steps=30, seed=12)
    entry = host.run(prompt, timeout=200)
    assert entry["status"]["status_str"] == "success", entry["status"]
    times = spans(host, "turn")
    first, second = sorted(times.values())
    assert first[1] < second[0]
    texts = [e.data["bytes"].decode(errors="replace") for e in host.events if e.data.get("kind") == "text"]
    assert any("waiting for cpu: another run is training on it" in text for text in texts)


def test_stop_ends_both(host):
    import time

    prompt = two_stages(lora_name="halt", steps=5000, seed=13, high={"device": "cpu:0"}, low={"device": "cpu:1"})
    prompt_id = host.queue(prompt)
    runs = host.base / "output" / "wan_train" / "runs"
    end = time.monotonic() + 120
    while time.monotonic() < end:
        states = [
            any(e["event"] == "step" for e in EventReader(p / "events.jsonl").read()) for p in runs.glob("halt_*")
        ]
        if len(states) == 2 and all(states):
            break
        time.sleep(0.1)
    host.interrupt(prompt_id)
    entry = host.wait(prompt_id)
    assert entry["status"]["messages"][-1][0] == "execution_interrupted"
    for folder in runs.glob("halt_*"):
        events = EventReader(folder / "events.jsonl").read()
        assert events[-1]["event"] == "stopped", folder
        assert list((folder / "checkpoints").glob("step-*"))
