import csv

import pytest
import torch
from safetensors.torch import load_file
from wan_train.tools.nano import text, train_dit, train_vae
from wan_train.tools.nano.family import Files
from wan_train.tools.nano.vae import WanVAE, load_vae, to_video


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A family trained for a moment."""
    files = Files(tmp_path_factory.mktemp("family"))
    text.main([str(files.text_encoder)])
    log = files.root / "vae.csv"
    train_vae.main(
        [str(files.vae), "--log", str(log), "--steps", "1", "--batch-size", "1", "--clips", "4", "--tests", "1"]
    )
    data = files.root / "data.safetensors"
    train_dit.main(["data", str(data), "--family", str(files.root), "--clips", "6", "--stills", "3"])
    return files


def test_the_vae_file_is_normalised_half_precision(family):
    tensors = load_file(family.vae)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    latents = load_vae(family.vae).encode(to_video(train_vae.training_frames(1, 4)))
    assert torch.allclose(latents.std((0, 2, 3, 4)), torch.ones(16), atol=0.1)


def test_the_vae_loss_falls_along_its_gradient():
    vae = WanVAE(8)
    vae.load_state_dict(train_vae.wan_vae(8))
    video = train_vae.augmented(train_vae.training_frames(1, 1)[:, :5])
    optimizer = torch.optim.SGD(vae.parameters(), 1e-6)
    losses = []
    for _ in range(3):
        torch.manual_seed(0)  # of the posterior's noise
        loss, pixels = train_vae.vae_loss(vae, video)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > losses[1] > losses[2] > pixels.item()


def test_data_holds_clips_stills_and_several_phrasings(family):
    data = train_dit.load_data(family.root / "data.safetensors")
    assert data.latents["clips"].shape == (6, 16, 5, 8, 8)
    assert data.latents["stills"].shape == (3, 16, 1, 8, 8)
    assert data.contexts["clips"].shape[0] == 6 * train_dit.PHRASINGS
    chosen, phrasing = torch.tensor([2, 5]), torch.tensor([0, 1])
    latents, context = data.batch("clips", chosen, phrasing, torch.tensor([False, True]))
    assert torch.equal(latents, data.latents["clips"][chosen].float())
    assert context.shape == (2, 512, 64)
    assert torch.equal(context[0, :40], data.contexts["clips"][6].float())
    assert torch.equal(context[1, :40], data.empty.float())


@pytest.mark.grid(2)
@pytest.mark.parametrize("stage", ["high", "low"])
def test_an_expert_learns_and_its_file_is_what_the_core_reads(family, stage, monkeypatch):
    from wan_train.core.wan.checkpoint import inspect

    log = family.root / f"{stage}.csv"
    monkeypatch.setattr(train_dit, "LOG_EVERY", 5)
    arguments = ["--family", str(family.root), "--steps", "20", "--batch-size", "6", "--warm-up", "5"]
    train_dit.main([stage, str(family.root / "data.safetensors"), *arguments, "--log", str(log)])
    rows = list(csv.DictReader(log.open(encoding="utf-8")))
    assert [int(row["step"]) for row in rows] == [5, 10, 15, 20]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    config = inspect(family.dit(stage)).config
    assert (config.dim, config.num_heads, config.text_dim, config.num_layers) == (128, 4, 64, 6)
