"""What you train is what you run: the LoRA file, through the host's loader, gives the trained model's forward."""

import logging
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from wan_train.core.adapters.setup import load_adapter
from wan_train.core.data.pairs import data_spec
from wan_train.core.data.types import LatentCache, LatentEntry, TextCache, TextEntry
from wan_train.core.settings.adapter import AdapterOptions
from wan_train.core.settings.job import Job, ModelSpec
from wan_train.core.settings.loop import LoopOptions
from wan_train.core.settings.optimizer import OptimizerOptions
from wan_train.core.settings.timesteps import TimestepOptions
from wan_train.core.train.events import EventWriter
from wan_train.core.train.prepare import prepare
from wan_train.core.train.run import run_job
from wan_train.core.train.run_folder import RunFolder
from wan_train.core.wan.checkpoint import inspect
from wan_train.tools.miniature import DiTSize, dit_metadata, wan_dit

SIZE = DiTSize(dim=96, ffn_dim=192, num_heads=2, num_layers=3, text_dim=64)
CPU = torch.device("cpu")


def trained(folder, **adapter):
    """A run of a few steps with a large learning rate, so that the LoRA changes the forward plainly."""
    model = folder / "base.safetensors"
    save_file(wan_dit(SIZE, seed=4), model, metadata=dit_metadata(SIZE))
    generator = torch.Generator().manual_seed(0)
    save_file({"latents": torch.randn(16, 2, 6, 4, generator=generator)}, folder / "l.safetensors")
    save_file({"context": torch.randn(7, 64, generator=generator)}, folder / "t.safetensors")
    entry = LatentEntry(path=str(folder / "l.safetensors"), key="l", name="l", caption="c", shape=(16, 2, 6, 4))
    latents = LatentCache(entries=(entry,), encoder="v", latent_format="wan2.1", fps=16.0)
    texts = tuple(
        TextEntry(path=str(folder / "t.safetensors"), key=caption, caption=caption, num_tokens=7)
        for caption in ("c", "")
    )
    job = Job(
        name="x",
        stage="high",
        model=ModelSpec(path=str(model), identity=inspect(model).identity, label="wan2.2-t2v-a14b"),
        data=data_spec(latents, TextCache(entries=texts, encoder="t", dim=64)),
        adapter=AdapterOptions(**{"rank": 4, "alpha": 8.0, **adapter}),
        timesteps=TimestepOptions(sigma_min=0.875),
        optimizer=OptimizerOptions(learning_rate=2e-2),
        loop=LoopOptions(steps=12, checkpoint_every=12),
        device="cpu",
    )
    run = RunFolder(folder / "run")
    run.path.mkdir()
    run.write_job(job)
    lora = run_job(run, EventWriter(run.events_path), CPU, lambda: False)
    prepared = prepare(replace(job), CPU)
    load_adapter(prepared.model, run.checkpoint_store.load(run.checkpoints()[-1][1])[0])
    return model, lora, prepared.model.eval()


@pytest.mark.grid(2)
@pytest.mark.parametrize(
    ("adapter", "modules"),
    [
        ({}, 30),
        ({"targets": ("self_attn",)}, 12),
        ({"rslora": True, "exclude": "ffn.2", "ranks": "cross_attn = 2, 0"}, 27),
        ({"kind": "dora"}, 30),
        ({"kind": "loha"}, 30),
        ({"kind": "lokr"}, 30),
        ({"kind": "lokr", "lokr_full": True, "lokr_factor": 4}, 30),
    ],
    ids=["all", "self", "rules", "dora", "loha", "lokr", "lokr_full"],
)
def test_the_hosts_forward_with_the_lora_is_the_trained_one(comfy, tmp_path, caplog, adapter, modules):
    import comfy.lora
    import comfy.sd
    import comfy.utils

    model_path, lora_path, ours = trained(tmp_path, **adapter)
    base = comfy.sd.load_diffusion_model(str(model_path))
    state = comfy.utils.load_torch_file(str(lora_path), safe_load=True)
    with caplog.at_level(logging.WARNING):
        patched, _ = comfy.sd.load_lora_for_models(base, None, state, 1.0, 0)
    assert "not loaded" not in caplog.text
    assert len(patched.patches) == modules
    assert sum(key.endswith(".alpha") for key in load_file(lora_path)) == modules

    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 16, 3, 4, 8, generator=generator)
    context = torch.randn(2, 512, 64, generator=generator)
    timesteps = torch.tensor([930.0, 880.0])
    with torch.no_grad():
        wanted = ours(latents, timesteps, context)
        patched.patch_model(device_to=CPU)
        result = patched.model.diffusion_model(latents, timesteps, context)
        patched.unpatch_model()
        plain = base.model.diffusion_model(latents, timesteps, context)
    scale = wanted.abs().max()
    assert ((result - wanted).abs().max() / scale).item() < 1e-5
    assert ((plain - wanted).abs().max() / scale).item() > 1e-2  # the LoRA does something
