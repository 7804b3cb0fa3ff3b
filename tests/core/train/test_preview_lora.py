"""Previews with a LoRA that is on the model in them alone, and without a training adapter."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from wan_train.core.adapters.apply import attach
from wan_train.core.adapters.formats import LoraModule, write_lora
from wan_train.core.adapters.other_files import read_adapter
from wan_train.core.adapters.setup import write_adapter
from wan_train.core.errors import ConfigError
from wan_train.core.sample.previews import preview_shots, preview_warnings
from wan_train.core.sample.sampler import initial_noise, sample
from wan_train.core.settings.job import ModelSpec
from wan_train.core.settings.previews import PreviewOptions
from wan_train.core.train.batches import load_context
from wan_train.core.train.events import read_history
from wan_train.core.train.other_expert import beside_own, check_preview_loras, open_other, open_own
from wan_train.core.train.preview_folder import PreviewFolder
from wan_train.core.train.preview_sampling import sample_shots
from wan_train.core.train.run_folder import RunFolder
from wan_train.core.wan.checkpoint import inspect
from wan_train.core.wan.loading import load_transformer
from wan_train.tests.core.train.helpers import SIZE
from wan_train.tests.core.train.test_previews import learnt, staged
from wan_train.tests.core.train.test_run import CPU, run
from wan_train.tools.miniature import dit_metadata, wan_dit


@pytest.fixture
def lora(tmp_path):
    """A LoRA that changes a lot: as a distillation does."""
    generator = torch.Generator().manual_seed(5)
    shape = (4, SIZE.dim), (SIZE.dim, 4)
    down, up = (torch.randn(size, generator=generator) for size in shape)
    module = LoraModule(down=down, up=0.2 * up, alpha=4.0)
    names = [f"blocks.{block}.self_attn.{layer}" for block in range(SIZE.num_layers) for layer in "qo"]
    return write_lora(
        tmp_path / "few_steps.safetensors", dict.fromkeys(names, module), metadata={}, dtype=torch.float32
    )


@pytest.fixture
def other(tmp_path):
    path = tmp_path / "the_other_expert.safetensors"
    save_file(wan_dit(SIZE, seed=77), path, metadata=dit_metadata(SIZE))
    return inspect(path)


def expected(job, trainer, tmp_path, lora, other):
    """By models that are whole in memory: the experts of the files, the new LoRA on the one, `lora` on both."""
    new = write_adapter(tmp_path / "new.safetensors", trainer.model, metadata={})
    models = []
    for info, files in ((inspect(Path(job.model.path)), (new, lora)), (other, (lora,))):
        model = load_transformer(info, dtype=torch.float32, device="cpu").eval()
        for path in files:
            attach(model, read_adapter(path).modules)
        models.append(model)
    (shot,) = preview_shots(job)
    noise = initial_noise((1, *shot.shape), shot.seed)
    return sample(*models, noise, load_context(shot.text_path, "a text")[None], None, shot.sampling)[0]


def test_previews_of_few_steps_have_the_lora_on_both_experts(tmp_path, job, lora, other):
    job = replace(staged(job, "high"), other_expert=ModelSpec(path=str(other.path), identity=other.identity))
    previews = replace(job.previews, every=6, steps=4, cfg=1.0, shift=5.0, lora=str(lora), other_lora=str(lora))
    job = replace(job, previews=previews)
    trainer = learnt(job)
    own = open_own(job, trainer.model, CPU, beside_own(job))
    away = open_other(job.other_expert, CPU, None, beside=[(lora, 1.0)])
    (found,) = sample_shots(trainer, preview_shots(job), own=own, other=away)
    torch.testing.assert_close(found, expected(job, trainer, tmp_path, lora, other), rtol=1e-4, atol=1e-4)
    (plain,) = sample_shots(trainer, preview_shots(job), other=open_other(job.other_expert, CPU, None))
    assert not torch.allclose(found, plain, atol=1e-2)


@pytest.mark.parametrize("kept", [True, False])
def test_what_is_merged_into_the_base_is_in_previews_or_left_out(job, lora, kept):
    """A training adapter is left out, as when its user generates."""
    job = staged(job, "single")
    merged = replace(job, adapter=replace(job.adapter, merge_into_base=str(lora), merge_strength=0.5))
    merged = replace(merged, previews=replace(job.previews, every=6, with_merged=kept))
    assert beside_own(merged) == (None if kept else [])
    assert beside_own(replace(merged, previews=replace(merged.previews, lora=str(lora)))) == (
        [(lora, 1.0), (lora, 0.5)] if kept else [(lora, 1.0)]
    )
    if kept:
        return
    trainer = learnt(job)  # its base has nothing merged into it: what previews are to show
    own = open_own(merged, trainer.model, CPU, beside_own(merged))
    found, plain = (sample_shots(trainer, preview_shots(job), own=each)[0] for each in (own, None))
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-4)


def test_a_run_makes_them_and_goes_on_without_where_the_file_is_gone(tmp_path, job, lora):
    job = staged(job, "single", every=6)
    with_it = replace(job, previews=replace(job.previews, lora=str(lora)))
    latents = []
    for name, each in (("plain", job), ("with", with_it), ("gone", with_it)):
        if name == "gone":
            lora.unlink()
        folder, result = run(tmp_path / name, each)
        assert result.is_file()
        latents.append(PreviewFolder.of(RunFolder(folder.path)).read(6))
    assert not torch.allclose(latents[0], latents[1], atol=1e-2)
    assert torch.equal(latents[0], latents[2])
    warnings = [one for one in read_history(folder.events_path).warnings if "without preview_lora" in one]
    assert len(warnings) == 1
    assert "few_steps.safetensors" in warnings[0]


def test_a_file_that_does_not_fit_is_refused_before_the_run(tmp_path, job, lora):
    info = inspect(Path(job.model.path))
    check_preview_loras(PreviewOptions(lora=str(lora), other_lora=str(lora)), info)
    with pytest.raises(ConfigError, match=r"preview_other_lora is .*nowhere.safetensors"):
        check_preview_loras(PreviewOptions(other_lora=str(tmp_path / "nowhere.safetensors")), info)
    module = LoraModule(down=torch.ones(1, 3), up=torch.ones(3, 1), alpha=1.0)
    wrong = write_lora(tmp_path / "wrong.safetensors", {"blocks.0.self_attn.q": module}, metadata={})
    with pytest.raises(
        ConfigError,
        match=r"preview_lora can't be put on this model: wrong.safetensors is a LoRA for a Wan model \(width 3\)",
    ):
        check_preview_loras(PreviewOptions(lora=str(wrong)), info)


def test_options_without_effect_are_told(job, lora):
    previews = replace(staged(job, "high").previews, every=6, other_lora=str(lora), with_merged=False)
    said = " ".join(preview_warnings(replace(staged(job, "high"), previews=previews)))
    assert "preview_other_lora has no effect without the other expert" in said
    assert "preview_with_merged has no effect without a file" in said
