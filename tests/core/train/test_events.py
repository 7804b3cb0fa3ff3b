from wan_train.core.train.events import EventReader, EventWriter, read_history


def test_reader_follows_the_writer(tmp_path):
    path = tmp_path / "events.jsonl"
    reader = EventReader(path)
    assert reader.read() == []
    writer = EventWriter(path)
    writer.write("step", step=1, loss=0.5)
    assert [e["step"] for e in reader.read()] == [1]
    assert reader.read() == []
    writer.write("step", step=2, loss=0.4)
    assert [e["step"] for e in reader.read()] == [2]


def test_a_line_cut_short_is_passed_over_and_the_next_one_is_not_lost(tmp_path):
    path = tmp_path / "events.jsonl"
    EventWriter(path).write("step", step=1, loss=0.5)
    with path.open("ab") as file:
        file.write(b'{"event": "step", "ste')
    assert len(EventReader(path).read()) == 1  # an incomplete line waits
    EventWriter(path).write("step", step=2, loss=0.4)
    assert [e["step"] for e in EventReader(path).read()] == [1, 2]


def test_history_of_a_crash_counts_the_last_attempt(tmp_path):
    path = tmp_path / "events.jsonl"
    writer = EventWriter(path)
    writer.write("start", step=0)
    for step, loss in [(1, 1.0), (2, 2.0), (3, 3.0)]:
        writer.write("step", step=step, loss=loss)
    writer.write("start", step=1)  # resumed from the checkpoint of step 1
    assert read_history(path).losses == {1: 1.0}
    writer.write("step", step=2, loss=20.0)
    writer.write("validation", step=2, loss=0.7)
    writer.write("warning", message="w")
    writer.write("warning", message="w")
    writer.write("finished", lora="x.safetensors")
    history = read_history(path)
    assert history.losses == {1: 1.0, 2: 20.0}
    assert history.validation == {2: 0.7}
    assert history.warnings == ["w"]
    assert history.state == "finished"
