"""What is only for show ends no run: its files may vanish or be damaged while it goes on, and its folders refuse."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from wan_train.core.settings.job import CaptionText, ModelSpec, PreviewPrompt
from wan_train.core.settings.previews import PreviewOptions
from wan_train.core.settings.samples import SamplePrompt
from wan_train.core.settings.saving import SavingOptions
from wan_train.core.train.events import EventReader, EventWriter, read_history
from wan_train.core.train.other_expert import newest_lora
from wan_train.core.train.preview_folder import PreviewFolder
from wan_train.core.train.run import run_job
from wan_train.core.train.run_folder import RunFolder
from wan_train.core.wan.checkpoint import inspect
from wan_train.tests.core.train.helpers import SIZE
from wan_train.tests.core.train.test_run import CPU, run, same_weights
from wan_train.tools.miniature import dit_metadata, wan_dit


def with_prompts(job, folder, names):
    prompts = []
    for name in names:
        path = folder / f"{name}.text.safetensors"
        generator = torch.Generator().manual_seed(len(name))
        save_file({"context": torch.randn(3, SIZE.text_dim, generator=generator)}, path)
        text = CaptionText(path=str(path), key=name)
        asked = SamplePrompt(name=name, prompt=f"a {name}", cfg=1.0)
        prompts.append(PreviewPrompt(asked=asked, text=text, negative=text))
    return replace(job, data=replace(job.data, prompts=tuple(prompts)))


def told(folder, kind):
    return [event for event in EventReader(folder.events_path).read() if event["event"] == kind]


def test_a_prompt_that_vanishes_is_left_out_and_told_once(tmp_path, job):
    shown = with_prompts(replace(job, previews=PreviewOptions(every=1, steps=3)), tmp_path, ["cat", "doggy"])
    _, plain = run(tmp_path / "plain", job)
    gone = {2: lambda: (tmp_path / "cat.text.safetensors").unlink()}
    folder, lora = run(tmp_path / "run", shown, at_step=gone)
    assert same_weights(plain, lora)
    (warning,) = [w for w in read_history(folder.events_path).warnings if "without this one" in w]
    assert "the cached text of the prompt cat is gone" in warning
    assert [event.get("prompts", 1) for event in told(folder, "preview")] == [2, 1, 1, 1, 1, 1]
    assert '"doggy"' in PreviewFolder.of(folder).shown_path(6).read_text()


def test_all_texts_may_vanish(tmp_path, job):
    shown = replace(job, previews=PreviewOptions(every=1, steps=3, cfg=2.0))
    shown = with_prompts(shown, tmp_path, ["cat"])
    folder, lora = run(tmp_path / "run", shown, at_step={3: lambda: save_file({}, tmp_path / "cat.text.safetensors")})
    assert lora.is_file()
    assert [event["step"] for event in told(folder, "preview")] == [1, 2]


def test_a_held_out_sample_may_vanish(tmp_path, job):
    first, second, third = job.data.samples
    held = replace(job, data=replace(job.data, samples=(first, second, replace(third, held_out=True))))
    held = replace(held, loop=replace(held.loop, validate_every=1), saving=SavingOptions(keep_best=True))
    _, plain = run(tmp_path / "plain", held)
    folder, lora = run(tmp_path / "run", held, at_step={3: Path(third.latents_path).unlink})
    assert same_weights(plain, lora)
    assert [event["step"] for event in told(folder, "validation")] == [0, 1, 2, 3]
    assert any("held-out loss at step 4 is not measured" in warning["message"] for warning in told(folder, "warning"))


def wall(path):
    """A file where a folder is wanted: refuses whoever asks, root too."""

    def build():
        shutil.rmtree(path, ignore_errors=True)
        path.write_text("no folder")

    return build


def test_the_folder_of_previews_may_refuse(tmp_path, job):
    shown = replace(job, previews=PreviewOptions(every=1, steps=3))
    folder, lora = run(tmp_path / "run", shown, at_step={2: wall(tmp_path / "run" / "previews")})
    assert lora.is_file()
    assert [event["step"] for event in told(folder, "preview")] == [1]
    assert any("preview of step 3 is not kept" in warning["message"] for warning in told(folder, "warning"))


@pytest.mark.grid(4)
@pytest.mark.parametrize("what", ["gone", "cut", "another shape", "nonsense"])
@pytest.mark.parametrize("stage", ["high", "low"])
def test_the_other_expert_may_be_replaced(tmp_path, job, stage, what):
    path = tmp_path / "other.safetensors"
    save_file(wan_dit(SIZE, seed=77), path, metadata=dit_metadata(SIZE))
    spec = ModelSpec(path=str(path), identity=inspect(path).identity)
    options = PreviewOptions(every=1, steps=6, width=64, height=48, frames=9)
    window = {"high": (0.875, 1.0), "low": (0.0, 0.875)}[stage]
    levels = replace(job.timesteps, sigma_min=window[0], sigma_max=window[1])
    shown = replace(job, stage=stage, other_expert=spec, previews=options, timesteps=levels)

    def act():
        small = replace(SIZE, num_layers=1, ffn_dim=32)
        match what:
            case "gone":
                path.unlink()
            case "cut":
                path.write_bytes(path.read_bytes()[:-1000])
            case "another shape":
                save_file(wan_dit(small, seed=1), path, metadata=dit_metadata(small))
            case "nonsense":
                path.write_bytes(b"{}" * 5000)

    folder, lora = run(tmp_path / "run", shown, at_step={3: act})
    assert lora.is_file()
    assert [event["step"] for event in told(folder, "preview")] == [1, 2, 3, 4, 5, 6]
    (warning,) = [w for w in read_history(folder.events_path).warnings if "noise expert alone" in w]
    assert "other.safetensors" in warning
    sizes = [PreviewFolder.of(folder).read(step).shape[1:] for step in (2, 4)]
    assert sizes == [(3, 6, 8), (3, 6, 8) if stage == "high" else (2, 4, 4)]


@pytest.mark.parametrize("when", [1, 4])
def test_the_other_expert_may_be_replaced_within_a_preview(tmp_path, job, when):
    """Its blocks are read one by one; after so many steps of sampling from another file."""
    path = tmp_path / "other.safetensors"
    save_file(wan_dit(SIZE, seed=77), path, metadata=dit_metadata(SIZE))
    spec = ModelSpec(path=str(path), identity=inspect(path).identity)
    levels = replace(job.timesteps, sigma_min=0.875, sigma_max=1.0)
    shown = replace(job, stage="high", other_expert=spec, timesteps=levels, previews=PreviewOptions(every=3, steps=6))
    folder, asked = RunFolder(tmp_path / "run"), 0
    folder.path.mkdir()
    folder.write_job(shown)

    def look():
        nonlocal asked
        asked += any("sampling a preview" in event["message"] for event in told(folder, "status"))
        if asked == when:
            small = replace(SIZE, num_layers=1, ffn_dim=32)
            save_file(wan_dit(small, seed=1), path, metadata=dit_metadata(small))
        return False

    assert run_job(folder, EventWriter(folder.events_path), CPU, look).is_file()
    assert [event["step"] for event in told(folder, "preview")] == [3, 6]
    assert sum("noise expert alone" in warning for warning in read_history(folder.events_path).warnings) >= 1


def test_the_other_experts_lora_may_vanish_or_be_damaged(tmp_path, job):
    path = tmp_path / "other.safetensors"
    save_file(wan_dit(SIZE, seed=77), path, metadata=dit_metadata(SIZE))
    info, own = inspect(path), inspect(Path(job.model.path))
    levels = replace(job.timesteps, sigma_min=0.875, sigma_max=1.0)
    spec = ModelSpec(path=str(path), identity=info.identity)
    high = replace(job, stage="high", other_expert=spec, timesteps=levels, previews=PreviewOptions(every=1, steps=4))
    low = replace(job, model=replace(job.model, path=str(path), identity=info.identity))
    low = replace(low, other_expert=ModelSpec(path=job.model.path, identity=own.identity))
    runs = tmp_path / "runs"
    runs.mkdir()
    other, lora = run(runs / f"{low.name}_low_{low.key}", low)
    acts = {
        2: lambda: lora.write_bytes(lora.read_bytes()[:-10]),
        4: lambda: [lora.unlink(), shutil.rmtree(other.checkpoints_path)],
    }
    folder, made = run(runs / f"{high.name}_high_{high.key}", high, at_step=acts)
    assert made.is_file()
    assert [event["step"] for event in told(folder, "preview")] == [1, 2, 3, 4, 5, 6]
    said = [event["message"].partition("(")[2] for event in told(folder, "status") if "sampling" in event["message"]]
    with_it, plain = "the other one with its LoRA of step 6)", "the other one plain)"
    assert said == [with_it] + [plain] * 5
    assert newest_lora(folder.path, high) is None
