"""Masks from a folder to the gradient: scan, cache, job, step."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from wan_train.core.data.encode import cache_latents, cache_text
from wan_train.core.data.pairs import data_spec
from wan_train.core.data.scan import scan_folder
from wan_train.core.data.store import Store
from wan_train.core.settings.dataset import DatasetOptions
from wan_train.tests.core.data.conftest import write_clip
from wan_train.tests.core.data.test_encode import CharEncoder, PoolVAE
from wan_train.tests.core.train.helpers import SIZE, make_trainer


@pytest.fixture
def data(tmp_path):
    torch.manual_seed(0)
    folder = tmp_path / "set"
    (folder / "masks").mkdir(parents=True)
    write_clip(folder / "a.mp4", 9, size=(64, 64))
    pixels = np.zeros((64, 64), np.uint8)
    pixels[:, 40:] = 255
    Image.fromarray(pixels).save(folder / "masks" / "a.png")
    vae, text, store = PoolVAE(), CharEncoder(dim=SIZE.text_dim), Store(tmp_path / "cache")

    def cached(**options):
        options = DatasetOptions(width=64, height=64, num_frames=9, default_caption="x", **options)
        dataset = scan_folder(folder, options)
        return data_spec(cache_latents(dataset, vae, store)[0], cache_text(dataset.captions, text, store)[0])

    return cached


def test_loss_and_gradient_are_a_sum_by_hand(job, data):
    job = replace(job, optimizer=replace(job.optimizer, max_grad_norm=0), loop=replace(job.loop, caption_dropout=0.0))
    masked = replace(job, data=data(mask_folder="masks", mask_least=0.25))
    other = make_trainer(replace(job, data=data()))
    by_hand = torch.full((3, 8, 8), 0.25)
    by_hand[:, :, 5:] = 1.0  # 40 pixels are 5 latents
    noisy = other.add_noise(other.batches.get(0), 0)
    loss = ((other.forwards.pred(noisy) - noisy.target).pow(2) * by_hand).mean()
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in other.parameters if p.grad is not None]).norm()
    trainer = make_trainer(masked)
    assert torch.equal(trainer.batches.get(0).masks[0, 0], by_hand)
    report = trainer.train_step().read()
    assert report.loss == pytest.approx(loss.item(), rel=1e-5)
    assert report.grad_norm == pytest.approx(norm.item(), rel=1e-4)
    assert masked.key != replace(job, data=data()).key


def test_a_white_mask_counts_as_none(job, data):
    job = replace(job, loop=replace(job.loop, caption_dropout=0.0))
    plain = make_trainer(replace(job, data=data())).train_step().read()
    white = make_trainer(replace(job, data=data(mask_folder="masks", mask_least=1.0))).train_step().read()
    assert white.loss == pytest.approx(plain.loss, rel=1e-6)
    assert white.grad_norm == pytest.approx(plain.grad_norm, rel=1e-5)
