"""Training on what image-to-video models are given: known frames, their mask, CLIP features, a clean first frame."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from wan_train.core.data.conditioning import known_mask
from wan_train.core.errors import ConfigError
from wan_train.core.flow.objective import add_noise, flow_loss, give_first_frame, sample_noise
from wan_train.core.flow.sigmas import sample_sigmas
from wan_train.core.settings.job import DataSpec, ModelSpec, job_from_json, job_to_json
from wan_train.core.train.batches import load_batch
from wan_train.core.train.checks import check_data
from wan_train.core.train.validation import validation_loss
from wan_train.core.wan.checkpoint import inspect
from wan_train.tests.core.train.helpers import SIZE, compute_loss, make_sample, make_trainer
from wan_train.tools.miniature import dit_metadata, wan_dit

SHAPE = (16, 3, 4, 4)
SIZES = {
    "wan2.1_i2v": replace(SIZE, in_dim=36, image_embedding=True),
    "wan2.2_i2v": replace(SIZE, in_dim=36),
    "ti2v_5b": replace(SIZE, in_dim=48, out_dim=48),
    "t2v": SIZE,
}


@pytest.fixture
def make_job(job, tmp_path):
    """A job on a miniature of a variant, over clips with what `given` names."""

    def make(variant, conditioning="first frame", *, known=False, vision=False, **changes):
        size = SIZES[variant]
        path = tmp_path / f"{variant}.safetensors"
        save_file(wan_dit(size, seed=1), path, metadata=dit_metadata(size))
        shape = (size.out_dim, *SHAPE[1:])
        samples = []
        for name in ("one", "two"):
            given = {}
            if known:
                given |= {"known_path": str(tmp_path / f"{name}.known.safetensors"), "known_key": f"k-{name}"}
                save_file({"latents": torch.randn(shape)}, given["known_path"])
            if vision:
                given |= {"vision_path": str(tmp_path / f"{name}.vision.safetensors"), "vision_key": f"v-{name}"}
                save_file({"features": torch.randn(257, 1280)}, given["vision_path"])
            samples.append(make_sample(tmp_path, name, shape=shape, **given))
        data = replace(job.data, samples=tuple(samples), conditioning=conditioning)
        model = ModelSpec(path=str(path), identity=inspect(path).identity)
        return replace(job, data=data, model=model, **changes)

    return make


GIVEN = {
    "wan2.1_i2v": {"known": True, "vision": True},
    "wan2.2_i2v": {"known": True},
    "ti2v_5b": {},
}


class Recorder(torch.nn.Module):
    """Keeps its inputs; its velocity is one number for each latent frame."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, latents, timesteps, context, **given):
        self.calls.append((latents, timesteps, context, given))
        frames = torch.arange(latents.shape[2], dtype=torch.float32).view(1, 1, -1, 1, 1)
        return frames.expand(latents.shape)


def recorded(job):
    """The trainer's first batch, what the model was called with, and the loss."""
    trainer = make_trainer(job)
    trainer.model = trainer.forwards._model = Recorder()
    batch = trainer.batches.get(0)
    loss, sigmas = compute_loss(trainer, batch, 0)
    return batch, trainer.model.calls[0], loss, sigmas


def test_a_batch_holds_mask_latents_and_features(make_job):
    job = make_job("wan2.1_i2v", known=True, vision=True)
    samples = job.data.samples
    batch = load_batch(samples, [s.text_path for s in samples], "first frame")
    assert batch.conditioning.shape == (2, 20, *SHAPE[1:])
    assert torch.equal(batch.conditioning[1, :4], known_mask("first frame", SHAPE[1:]))
    assert batch.clip_features.shape == (2, 257, 1280)
    assert not torch.equal(batch.clip_features[0], batch.clip_features[1])


def test_an_i2v_model_is_given_conditioning_and_noise_on_every_frame(make_job):
    job = make_job("wan2.1_i2v", known=True, vision=True)
    batch, (latents, timesteps, _, given), loss, sigmas = recorded(job)
    noise = sample_noise(batch.latents.shape[1:], seed=job.loop.seed, draw=0)[None]
    assert torch.equal(latents, add_noise(batch.latents, noise, sigmas))
    assert torch.equal(timesteps, 1000 * sigmas)
    assert torch.equal(given["conditioning"], batch.conditioning)
    assert torch.equal(given["clip_features"], batch.clip_features)
    pred = torch.arange(3.0).view(1, 1, 3, 1, 1).expand(latents.shape)
    assert torch.equal(loss, (pred - (noise - batch.latents)).square().flatten(1).mean(1))


def test_a_t2v_model_is_called_with_nothing_more(make_job):
    *_, (_, timesteps, _, given), _, _ = recorded(make_job("t2v", "none"))
    assert given == {}
    assert timesteps.ndim == 1


def test_ti2v_is_given_its_first_frame_clean_and_learns_from_the_rest(make_job):
    job = make_job("ti2v_5b")
    batch, (latents, timesteps, _, given), loss, sigmas = recorded(job)
    assert given == {}
    noise = sample_noise(batch.latents.shape[1:], seed=job.loop.seed, draw=0)[None]
    assert torch.equal(latents[:, :, 0], batch.latents[:, :, 0])
    assert torch.equal(latents[:, :, 1:], add_noise(batch.latents, noise, sigmas)[:, :, 1:])
    assert torch.equal(timesteps, 1000 * torch.stack([torch.zeros(1), sigmas, sigmas], dim=1))
    error = (torch.arange(3.0).view(1, 1, 3, 1, 1) - (noise - batch.latents)).square()
    assert torch.equal(loss, error[:, :, 1:].flatten(1).mean(1))


def test_ti2v_without_a_given_frame_is_text_to_video(make_job):
    batch, (latents, timesteps, *_), _, sigmas = recorded(make_job("ti2v_5b", "none"))
    assert not torch.equal(latents[:, :, 0], batch.latents[:, :, 0])
    assert torch.equal(timesteps, 1000 * sigmas)


def test_the_given_frame_counts_neither_in_the_loss_nor_in_its_mean():
    """Masked and renormalised, as AI-Toolkit and the official code have it: the mean over what is left."""
    pred, target = torch.randn(2, 4, 5, 3, 3), torch.randn(2, 4, 5, 3, 3)
    mask = torch.ones(1, 1, 5, 1, 1)
    mask[:, :, 0] = 0
    masked = ((pred - target).square() * mask / mask.mean()).flatten(1).mean(1)
    torch.testing.assert_close(flow_loss(pred, target, given_frames=1), masked)
    noisy, timesteps = give_first_frame(pred, target, torch.tensor([3.0, 700.0]))
    assert timesteps.tolist() == [[0, 3, 3, 3, 3], [0, 700, 700, 700, 700]]
    assert torch.equal(noisy[:, :, 1:], pred[:, :, 1:])


@pytest.mark.parametrize("variant", GIVEN)
def test_every_variant_trains_and_all_its_layers_learn(make_job, variant):
    job = make_job(variant, **GIVEN[variant])
    job = replace(job, loop=replace(job.loop, steps=3, caption_dropout=0.0))
    trainer = make_trainer(job)
    batch = trainer.batches.get(0)
    noise = torch.stack([sample_noise(z.shape, seed=1, draw=i) for i, z in enumerate(batch.latents)])
    sigmas = sample_sigmas(job.timesteps, seed=1, first_draw=0, count=len(batch.latents))
    before = trainer.loss_at(batch, noise, sigmas).mean().item()
    for _ in range(15):
        loss = trainer.loss_at(batch, noise, sigmas).mean()
        loss.backward()
        trainer._set_learning_rate()
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
    assert trainer.loss_at(batch, noise, sigmas).mean().item() < 0.98 * before
    ups = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad and "lora_B" in n}
    assert all(p.abs().sum() > 0 for p in ups.values())
    assert any("k_img" in name for name in ups) == (variant == "wan2.1_i2v")


@pytest.mark.parametrize("variant", GIVEN)
def test_held_out_clips_are_validated_with_what_is_given(make_job, variant):
    job = make_job(variant, **GIVEN[variant])
    samples = (replace(job.data.samples[0], held_out=True), job.data.samples[1])
    trainer = make_trainer(replace(job, data=replace(job.data, samples=samples)))
    loss, by_sigma, by_sample = validation_loss(trainer)
    assert torch.isfinite(torch.tensor([loss, *by_sigma, *by_sample])).all()


def test_the_key_knows_what_is_given(make_job):
    plain, given = make_job("ti2v_5b", "none"), make_job("ti2v_5b")
    assert plain.key != given.key
    known = make_job("wan2.2_i2v", known=True)
    changed = replace(known.data.samples[0], known_key="other")
    assert replace(known, data=replace(known.data, samples=(changed, known.data.samples[1]))).key != known.key
    assert job_from_json(job_to_json(known)) == known


def test_a_job_of_before_reads_as_text_to_video(job):
    text = job_to_json(job)
    for name in ("known_path", "known_key", "vision_path", "vision_key", "conditioning"):
        lines = [line for line in text.splitlines() if f'"{name}"' not in line]
        text = "\n".join(lines).replace("false,\n      }", "false\n      }").replace("16,\n  }", "16\n  }")
    assert '"conditioning"' not in text
    assert job_from_json(text.replace(",\n      }", "\n      }").replace(",\n  }", "\n  }")) == job


@pytest.mark.parametrize(
    ("variant", "conditioning", "given", "words"),
    [
        ("t2v", "first frame", {}, r"'first frame', but t2v\.safetensors .*text-to-video.*'none'"),
        ("wan2.2_i2v", "none", {}, r"'none', but wan2\.2_i2v.*image-to-video.*'first frame' or 'first and last frame'"),
        ("ti2v_5b", "first and last frame", {}, r"'first and last frame', but .*'none' or 'first frame'"),
        ("wan2.1_i2v", "first frame", {"known": True}, r"needs the CLIP features.*clip_vision_h"),
        (
            "wan2.2_i2v",
            "first frame",
            {"known": True, "vision": True},
            r"takes no CLIP features: cache the latents without",
        ),
    ],
)
def test_mixtures_that_cannot_work_are_refused(make_job, variant, conditioning, given, words):
    job = make_job(variant, conditioning, **given)
    with pytest.raises(ConfigError, match=words):
        check_data(job, inspect(job.model.path))


def test_data_without_known_frames_gives_the_first_one(make_job):
    assert make_job("ti2v_5b").data.gives_first_frame
    assert not make_job("ti2v_5b", "none").data.gives_first_frame
    assert not make_job("wan2.2_i2v", known=True).data.gives_first_frame
    assert isinstance(make_job("t2v", "none").data, DataSpec)
