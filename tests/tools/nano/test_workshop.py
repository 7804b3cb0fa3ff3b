from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from wan_train.core.errors import ModelFileError
from wan_train.tests.tools.nano.small import QUICK, STAR
from wan_train.tools.mini_vae import wan_vae
from wan_train.tools.nano.family import Files
from wan_train.tools.nano.vae import to_video
from wan_train.tools.nano.workshop import NanoTextEncoder, NanoVideoEncoder


def test_the_video_encoder_gives_what_the_vae_gives(files, family):
    encoder = NanoVideoEncoder(files.vae)
    frames = torch.randint(0, 256, (5, 32, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    latents = encoder.encode(frames)
    assert (latents.shape, latents.dtype) == ((16, 2, 4, 6), torch.float32)
    assert torch.equal(latents, family.vae.encode(to_video(frames[None]))[0])
    torch.testing.assert_close(encoder.encode(frames.float() / 255), latents, rtol=0, atol=1e-4)


def test_the_text_encoder_gives_what_sampling_uses(files, family):
    encoder = NanoTextEncoder(files.text_encoder)
    for caption in ("a red zorp", ""):
        context, was_cut = encoder.encode(caption)
        assert (context.shape[1], context.dtype, was_cut) == (encoder.dim, torch.float32, False)
        padded = torch.nn.functional.pad(context, (0, 0, 0, 512 - len(context)))
        torch.testing.assert_close(padded, family.contexts([caption])[0], rtol=0, atol=1e-5)
        assert context.abs().sum(1).min() > 0
        (_, (beside, _)) = encoder.encode_batch(["a long caption about nothing else", caption])
        torch.testing.assert_close(beside, context, rtol=0, atol=1e-5)


def test_encoders_are_told_apart_by_their_weights(files, tmp_path):
    other = tmp_path / "vae.safetensors"
    save_file(wan_vae(1, seed=2), other)
    assert NanoVideoEncoder(other).identity != NanoVideoEncoder(files.vae).identity
    assert NanoVideoEncoder(files.vae).identity == NanoVideoEncoder(files.vae).identity


def test_a_job_for_each_stage_over_the_written_clips(workshop):
    jobs = workshop.jobs(STAR, QUICK)
    assert list(jobs) == ["high", "low"]
    assert {(s.shape, s.held_out) for s in jobs["high"].data.samples} == {((16, 5, 8, 8), False)}
    assert all("zorp" in s.caption and "star" not in s.caption for s in jobs["high"].data.samples)
    assert jobs["high"].data == jobs["low"].data
    windows = {stage: (job.timesteps.sigma_min, job.timesteps.sigma_max) for stage, job in jobs.items()}
    assert windows == {"high": (0.875, 1.0), "low": (0.0, 0.875)}
    assert jobs["high"].model.identity != jobs["low"].model.identity
    only_low = workshop.jobs(STAR, replace(QUICK, stages=("low",)))
    assert only_low == {"low": jobs["low"]}
    assert workshop.jobs(STAR, replace(QUICK, precision="fp8"))["low"].model.precision == "fp8"


def test_the_seed_decides_the_clips(workshop):
    other = replace(QUICK, loop=replace(QUICK.loop, seed=5))
    names = [[s.latents_key for s in workshop.jobs(STAR, settings)["low"].data.samples] for settings in (QUICK, other)]
    assert set(names[0]).isdisjoint(names[1])


def test_a_family_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ModelFileError, match=r"wan_nano_vae.safetensors can't be read \(No such file"):
        NanoVideoEncoder(Files(tmp_path).vae)
