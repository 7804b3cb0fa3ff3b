"""Previews while a stage trains, on the real host: decoded by the VAE on the node, served to the page."""

import io
import urllib.error
import urllib.request

import pytest
from PIL import Image
from wan_train.core.train.events import EventReader, read_history
from wan_train.core.train.preview_folder import PreviewFolder
from wan_train.core.train.run_folder import RunFolder
from wan_train.tests.host.graphs import FRAMES, SIZE, changed, dit, one_stage
from wan_train.tests.host.runs import await_step, new_folder, run_folders, starts_of, succeeded, until
from wan_train.tests.turns import turn_on_cpu, waits_of
from wan_train.tools.server import PromptRefusedError

OPTIONS = {"preview_every": 2, "preview_steps": 4, "preview_cfg": 1.0, "vae": ["vae", 0]}
DATA = {"slide_stride": 19}  # unlike every other test's, so that no node's output comes from the host's cache


def graph(stage="high", **train):
    return one_stage(stage, dataset=DATA, **{"lora_name": "shown", "steps": 5, "seed": 61, **OPTIONS, **train})


def fetch(host, path):
    with urllib.request.urlopen(f"{host.url}{path}") as answer:
        return answer.headers, answer.read()


def durations(video):
    """Milliseconds of each frame; those that are alike, as many of the miniature VAE's, are one in the file."""
    for number in range(video.n_frames):
        video.seek(number)
        video.load()
        yield video.info["duration"]


def preview_events(folder):
    return [e for e in EventReader(folder / "events.jsonl").read() if e["event"] == "preview"]


@pytest.fixture(scope="module")
def shown(host):
    """The run folder of a stage with previews of two prompts through both experts, and what the page was told."""
    before = run_folders(host)
    host.events.clear()
    prompt = graph(other_dit=["other", 0])
    prompt["other"] = dit("wan_mini_low_noise.safetensors")
    prompt["text"]["inputs"]["sample_prompts"] = "[trigger] turns\na square --w 96 --h 32 --f 5 --n round"
    entry = host.run(prompt)
    assert succeeded(entry)
    (folder,) = run_folders(host) - before
    return folder, [e.data for e in host.events if e.type == "wan_train.update" and e.data["node_id"] == "high_train"]


def test_previews_are_videos_of_the_samples_length(shown):
    folder, _ = shown
    assert [e["step"] for e in preview_events(folder)] == [2, 4, 5]
    previews = PreviewFolder.of(RunFolder(folder))
    latents = previews.read(2)
    assert latents.shape[1:] == ((FRAMES - 1) // 4 + 1, SIZE // 8, SIZE // 8)
    for step in (2, 4, 5):
        with Image.open(previews.video_path(step)) as video:
            assert (video.format, video.size) == ("WEBP", (SIZE, SIZE))
            assert sum(durations(video)) == FRAMES * round(1000 / 16)
    assert not list(folder.glob("previews/*.done"))
    assert read_history(folder / "events.jsonl").warnings == []


def test_each_prompt_has_its_video_and_its_place_in_the_gallery(host, shown):
    folder, _ = shown
    gallery = host.server.request(f"/wan_train/runs/{folder.name}/previews")
    assert gallery["prompts"] == [{"name": "1", "prompt": "shp turns"}, {"name": "2", "prompt": "a square"}]
    assert [row["step"] for row in gallery["steps"]] == [2, 4, 5]
    for row in gallery["steps"]:
        for file, size in zip(row["files"], [(SIZE, SIZE), (96, 32)], strict=True):
            _, body = fetch(host, f"/wan_train/runs/{folder.name}/previews/{file}")
            with Image.open(io.BytesIO(body)) as video:
                assert video.size == size
    said = [e["message"] for e in EventReader(folder / "events.jsonl").read() if e["event"] == "status"]
    begin = "step 2: sampling a preview of 2 prompts, through both experts (the other one "
    assert any(message.startswith(begin) for message in said)  # plain, or with what another test has trained


def test_the_page_is_told_and_served(host, shown):
    folder, updates = shown
    assert [step for step, _ in updates[-1]["previews"]] == [2, 4, 5]
    listed = host.server.request(f"/wan_train/runs/{folder.name}")["previews"]
    assert listed == updates[-1]["previews"]
    step, file = listed[-1]
    headers, body = fetch(host, f"/wan_train/runs/{folder.name}/previews/{file}")
    assert headers["Content-Type"] == "image/webp"
    assert body == PreviewFolder.of(RunFolder(folder)).video_path(step).read_bytes()


@pytest.mark.parametrize(
    "path",
    [
        "{run}/previews/step-00000003.webp",
        "{run}/previews/step-00000002.safetensors",
        "{run}/previews/..%2Fjob.json",
        "{run}/previews/%2e%2e",
        "..%2Fruns/previews/step-00000002.webp",
        "nothing/previews/step-00000002.webp",
    ],
)
def test_nothing_else_is_served(host, shown, path):
    folder, _ = shown
    with pytest.raises(urllib.error.HTTPError, match="404"):
        fetch(host, f"/wan_train/runs/{path.format(run=folder.name)}")


def refusal(host, prompt):
    """(node, what is said) of a prompt that is refused when it is queued, before anything of it runs."""
    with pytest.raises(PromptRefusedError) as caught:
        host.queue(prompt)
    ((key, found),) = [(k, v) for k, v in caught.value.answer["node_errors"].items() if v["errors"]]
    return key, " ".join(error["details"] for error in found["errors"])


def test_without_a_vae_previews_are_refused_before_anything_is_cached(host):
    prompt = graph(lora_name="no_vae", seed=62)
    del prompt["high_train"]["inputs"]["vae"]
    key, said = refusal(host, prompt)
    assert key == "high_train"
    assert "preview_every is 2, but previews need a VAE: connect" in said


def test_prompts_that_are_none_are_refused_before_anything_is_cached(host):
    prompt = graph(lora_name="no_prompts", seed=62)
    prompt["text"]["inputs"]["sample_prompts"] = "a square --w 17"
    key, said = refusal(host, prompt)
    assert key == "text"
    assert "the sample prompt 1: width must be a multiple of 16 up to 4096, or 0, got 17" in said


def test_stop_goes_on_with_its_previews(host):
    prompt = graph("low", lora_name="paused", seed=63, steps=100_000, preview_every=4, checkpoint_every=1000)
    before = run_folders(host)
    prompt_id = host.queue(prompt)
    folder = new_folder(host, before)
    await_step(folder, 5)
    host.interrupt(prompt_id)
    entry = host.wait(prompt_id)
    assert entry["status"]["messages"][-1][0] == "execution_interrupted"
    history = read_history(folder / "events.jsonl")
    assert history.state == "stopped"
    end = 4 * (max(history.losses) // 4 + 3)
    assert succeeded(host.run(changed(prompt, "low_train", steps=end)))
    assert starts_of(folder) == [0, max(history.losses)]
    previews = PreviewFolder.of(RunFolder(folder))
    done = [step for step, _ in previews.videos()]
    assert done[0] <= max(history.losses)
    assert done[-2:] == [end - 4, end]
    assert not previews.has_decoder()


def test_a_preview_that_cannot_be_decoded_is_a_warning_and_the_run_goes_on(host):
    """A folder stands where the video should be written."""
    prompt = graph(lora_name="blocked", seed=64, steps=4, preview_every=4)
    before = run_folders(host)
    with turn_on_cpu(host.base / "tmp") as turn:
        assert turn.acquire()
        prompt_id = host.queue(prompt)
        folder = new_folder(host, before)
        until(lambda: waits_of(folder / "events.jsonl"), "the run waits for its turn")
        (folder / "previews" / "step-00000004.webp" / "in the way").mkdir(parents=True)
    entry = host.wait(prompt_id)
    assert succeeded(entry)
    assert "the preview of step 4 could not be decoded" in entry["outputs"]["high_train"]["text"][0]
