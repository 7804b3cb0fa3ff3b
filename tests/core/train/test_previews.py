"""Previews while a run trains: the way of each stage from noise, what is given, the run beside them, and their files."""

import json
import shutil
from dataclasses import replace
from itertools import pairwise
from statistics import fmean

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from wan_train.core.errors import ConfigError
from wan_train.core.flow.objective import add_noise, give_first_frame
from wan_train.core.flow.shifts import shift_sigma
from wan_train.core.safe_json import seal, unseal
from wan_train.core.sample.previews import check_previews, preview_sample, preview_sampling
from wan_train.core.sample.sampler import SampleOptions, initial_noise, sample
from wan_train.core.sample.samplers import SAMPLERS
from wan_train.core.settings.job import job_from_json, job_to_json
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.settings.previews import OLD_SAMPLERS, PreviewOptions
from wan_train.core.settings.stage import settings_from_names
from wan_train.core.train import loop, previews
from wan_train.core.train.batches import load_batch, load_context
from wan_train.core.train.events import EventReader, EventWriter, read_history
from wan_train.core.train.preview_folder import MOST_KEPT, NEWEST, PreviewFolder, write_video
from wan_train.core.train.preview_sampling import experts, preview_latents
from wan_train.core.train.run import RunStoppedError, run_job
from wan_train.core.train.run_folder import RunFolder
from wan_train.tests.core.train.helpers import make_trainer
from wan_train.tests.core.train.test_image_to_video import GIVEN, make_job  # noqa: F401  # a fixture
from wan_train.tests.core.train.test_run import CPU, run, same_weights

STEPS, PREVIEW_SEED = 8, 1
BOUNDARY = 0.875


def staged(job, stage, **options):
    window = {"high": (BOUNDARY, 1.0), "low": (0.0, BOUNDARY), "single": (0.0, 1.0)}[stage]
    timesteps = replace(job.timesteps, sigma_min=window[0], sigma_max=window[1])
    options = PreviewOptions(**{"every": 2, "steps": STEPS, "cfg": 1.0, "shift": 5.0, **options})
    return replace(job, stage=stage, timesteps=timesteps, previews=options)


def learnt(job):
    """A trainer whose LoRA does something."""
    trainer = make_trainer(job)
    with torch.no_grad():
        for number, parameter in enumerate(trainer.parameters):
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    return trainer


def sigmas():
    """1, then as the scheduler "simple" has them, with shift 5, to 0."""
    return [shift_sigma(torch.tensor(1 - i / STEPS), 5.0) for i in range(STEPS + 1)]


def by_hand(trainer, first, last, latents, cfg=1.0, velocity=None):
    """Euler's steps from sigma number `first` to number `last`, and the last velocity."""
    job = trainer.job
    sample = preview_sample(job)
    context = load_context(sample.text_path, sample.name)[None]
    empty = load_context(job.data.empty_text_path, "empty")[None]
    s = sigmas()
    trainer.model.eval()
    for i in range(first, last):
        with torch.no_grad():
            velocity = trainer.model(latents, 1000 * s[i].view(1), context)
            if cfg != 1.0:
                negative = trainer.model(latents, 1000 * s[i].view(1), empty)
                velocity = negative + cfg * (velocity - negative)
        latents = latents + (s[i + 1] - s[i]) * velocity
    trainer.model.train()
    return latents, velocity


def test_a_single_model_goes_from_noise_to_the_end(job):
    trainer = learnt(staged(job, "single", cfg=3.0))
    noise = initial_noise((1, 16, 2, 4, 4), PREVIEW_SEED)
    expected, _ = by_hand(trainer, 0, STEPS, noise, cfg=3.0)
    torch.testing.assert_close(preview_latents(trainer), expected[0], rtol=1e-4, atol=1e-4)
    unguided, _ = by_hand(trainer, 0, STEPS, noise)
    assert not torch.allclose(unguided, expected, atol=1e-3)


def test_the_high_expert_shows_its_estimate_at_the_boundary(job):
    """shift 5, 8 steps: sigma 0.893 at step 3, which is its last, and 0.833 at step 4."""
    trainer = learnt(staged(job, "high"))
    noise = initial_noise((1, 16, 2, 4, 4), PREVIEW_SEED)
    before, _ = by_hand(trainer, 0, 3, noise)
    _, velocity = by_hand(trainer, 3, 4, before)
    expected = before - sigmas()[3] * velocity
    torch.testing.assert_close(preview_latents(trainer), expected[0], rtol=1e-4, atol=1e-4)


def test_the_low_expert_starts_from_noise_on_the_sample(job):
    trainer = learnt(staged(job, "low"))
    noise = initial_noise((1, 16, 2, 4, 4), PREVIEW_SEED)
    clean = load_file(preview_sample(trainer.job).latents_path)["latents"][None]
    expected, _ = by_hand(trainer, 4, STEPS, add_noise(clean, noise, sigmas()[4].view(1)))
    torch.testing.assert_close(preview_latents(trainer), expected[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stage", ["high", "low"])
@pytest.mark.parametrize("sampler", SAMPLERS.names)
def test_an_expert_alone_gets_no_noise_where_the_other_one_would_work(stage, sampler):
    """A sampler that adds some goes to the same video all the same: the model here and the sample say what it is."""
    video, noise = torch.full((1, 16, 2, 4, 6), 0.7), initial_noise((1, 16, 2, 4, 6), 3)

    def model(latents, timesteps, _context):
        return (latents - video) / (timesteps / 1000).view(-1, 1, 1, 1, 1)

    options = SampleOptions(steps=STEPS, sampler=sampler, boundary=BOUNDARY)
    latents = sample(*experts(stage, model, video), noise, torch.zeros(1, 8, 4), None, options)
    torch.testing.assert_close(latents, video, atol=5e-3 if SAMPLERS.get(sampler).last_sigma else 1e-5, rtol=0)


@pytest.mark.parametrize(("old", "name"), OLD_SAMPLERS.items())
def test_samplers_have_the_hosts_names_and_jobs_from_before_still_mean_the_same(job, old, name):
    chosen = staged(job, "single", sampler=name)
    assert staged(job, "single", sampler=old) == chosen
    data = unseal(json.loads(job_to_json(chosen)))
    data["previews"]["sampler"] = old
    assert job_from_json(json.dumps(seal(data))) == chosen


@pytest.mark.parametrize("stage", ["single", "high", "low"])
def test_previews_change_with_the_weights_alone(job, stage):
    job = staged(job, stage)
    one, again = preview_latents(make_trainer(job)), preview_latents(make_trainer(job))
    assert torch.equal(one, again)
    assert not torch.allclose(one, preview_latents(learnt(job)), atol=1e-3)


@pytest.mark.parametrize("variant", GIVEN)
def test_image_to_video_is_given_what_the_sample_has(make_job, variant):  # noqa: F811
    trainer = learnt(staged(make_job(variant, **GIVEN[variant]), "single", cfg=2.0))
    sample = preview_sample(trainer.job)
    batch = load_batch([sample], [sample.text_path], trainer.job.data.conditioning)
    calls = []
    forward = trainer.model.forward

    def watched(latents, timesteps, context, **given):
        calls.append((latents, timesteps, given))
        return forward(latents, timesteps, context, **given)

    trainer.model.forward = watched
    latents = preview_latents(trainer)
    assert len(calls) == 2 * STEPS  # guidance one by one
    for seen, timesteps, given in calls:
        assert len(seen) == 1
        if variant == "ti2v_5b":
            assert given == {}
            assert torch.equal(seen[:, :, 0], batch.latents[:, :, 0])
            assert timesteps[0, 0] == 0
        else:
            assert torch.equal(given["conditioning"], batch.conditioning)
            assert ("clip_features" in given) == (variant == "wan2.1_i2v")
    if variant == "ti2v_5b":
        torch.testing.assert_close(latents[:, 0], batch.latents[0, :, 0], rtol=1e-4, atol=1e-4)
        seen, timesteps, _ = calls[-1]
        assert torch.equal(give_first_frame(seen, batch.latents, timesteps[:, 1])[1], timesteps)


def test_the_first_held_out_sample_is_shown(job):
    assert preview_sample(job).name == "a"
    samples = (*job.data.samples[:1], replace(job.data.samples[1], held_out=True), *job.data.samples[2:])
    assert preview_sample(replace(job, data=replace(job.data, samples=samples))).name == "b"


def test_a_run_with_previews_is_the_run_without(tmp_path, job):
    job = replace(job, adapter=replace(job.adapter, dropout=0.2), loop=replace(job.loop, checkpoint_every=3))
    _, plain = run(tmp_path / "plain", job)
    state = torch.get_rng_state()
    folder, lora = run(tmp_path / "shown", replace(job, previews=PreviewOptions(every=4, steps=5)))
    torch.set_rng_state(state)
    assert same_weights(plain, lora)
    losses = [read_history(tmp_path / name / "events.jsonl").losses for name in ("plain", "shown")]
    assert losses[0] == losses[1]
    events = [e for e in EventReader(folder.events_path).read() if e["event"] == "preview"]
    assert [(e["step"], e["path"]) for e in events] == [
        (4, "previews/step-00000004.safetensors"),
        (6, "previews/step-00000006.safetensors"),
    ]
    latents = [load_file(folder.path / e["path"])["latents"] for e in events]
    assert latents[0].shape == (16, 2, 4, 4)
    assert not torch.equal(*latents)
    assert "no VAE is named" in " ".join(read_history(folder.events_path).warnings)
    assert not (tmp_path / "plain" / "previews").exists()


def test_memory_features_neither_change_previews_nor_are_changed_by_them(tmp_path, job):
    memory = MemoryOptions(plan="manual", keep_attention=1, offload_inputs=True, streamed_blocks=1)
    held = replace(job, memory=memory, loop=replace(job.loop, steps=3))
    shown = replace(held, previews=PreviewOptions(every=1, steps=3))
    _, plain = run(tmp_path / "plain", held)
    folder, lora = run(tmp_path / "shown", shown)
    assert same_weights(plain, lora)
    simple, _ = run(tmp_path / "simple", replace(shown, memory=MemoryOptions(plan="manual", checkpointing=False)))
    for step in (1, 3):
        one, two = (PreviewFolder.of(f).read(step) for f in (folder, simple))
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


def test_sampling_leaves_training_mode_and_randomness(job):
    trainer = learnt(staged(job, "single"))
    before = torch.get_rng_state()
    preview_latents(trainer)
    assert torch.equal(torch.get_rng_state(), before)
    assert trainer.model.training
    assert all(p.grad is None for p in trainer.parameters)

    def stop(_done, _total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        preview_latents(trainer, stop)
    assert trainer.model.training


def test_previews_are_attempts_that_may_run_out_of_memory(tmp_path, job):
    folder = RunFolder(tmp_path)
    job = staged(job, "single", every=1)
    trainer = learnt(job)
    trainer.step = 1
    acts = []

    def twice(act, step):
        acts.append(step)
        act()
        return act()

    trainer.attempt = twice
    previews.Preview(folder, EventWriter(folder.events_path), lambda: False).make(trainer)
    assert acts == [1]
    assert torch.equal(PreviewFolder.of(folder).read(1), preview_latents(trainer))


def test_a_stop_breaks_a_preview_off_and_keeps_a_checkpoint(tmp_path, job):
    job = replace(job, previews=PreviewOptions(every=1, steps=50), loop=replace(job.loop, checkpoint_every=100))
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.write_job(job)

    def should_stop():
        return any("sampling a preview" in e.get("message", "") for e in EventReader(folder.events_path).read())

    with pytest.raises(RunStoppedError):
        run_job(folder, EventWriter(folder.events_path), CPU, should_stop)
    assert [step for step, _ in folder.checkpoints()] == [1]
    assert not any(e["event"] == "preview" for e in EventReader(folder.events_path).read())
    assert not list(PreviewFolder.of(folder).path.glob("*.safetensors"))


class Clock:
    """Time that passes only where a preview is waited for, in its place in the module; `act` is done at each look."""

    def __init__(self, monkeypatch, act=lambda _number: None):
        self.now, self.looks, self._act = 0.0, 0, act
        for module in (previews, loop):
            monkeypatch.setattr(module, "time", self)

    def perf_counter(self):
        return self.now

    monotonic = perf_counter

    def sleep(self, seconds):
        self.now += seconds
        self.looks += 1
        self._act(self.looks)


def test_the_run_waits_for_who_decodes(tmp_path, job, monkeypatch):
    """Until its video is there, without a step meanwhile; and the wait is no part of a step's time."""
    folder = PreviewFolder(tmp_path / "run" / "previews")
    events = tmp_path / "run" / "events.jsonl"
    waited = []

    def decode(number):
        last = [event["step"] for event in EventReader(events).read() if event["event"] in ("step", "preview")]
        waited.append(last[-1])
        if number % 4 == 0:
            folder.mark_path(last[-1]).touch()

    clock = Clock(monkeypatch, decode)
    with folder.decoding():
        assert folder.has_decoder()
        run(tmp_path / "run", replace(job, previews=PreviewOptions(every=3, steps=4)))
    assert not folder.has_decoder()
    assert waited == [3] * 4 + [6] * 4
    assert clock.now == pytest.approx(8 * previews.POLL_S)
    lines = EventReader(events).read()
    assert [e["seconds"] for e in lines if e["event"] == "step"] == [0.0] * 6
    assert not any("latents" in warning for warning in read_history(events).warnings)
    assert not list(folder.path.glob("*.done"))


def test_the_run_waits_no_longer_when_the_decoder_is_gone_or_late(tmp_path, job, monkeypatch):
    folder = PreviewFolder(tmp_path / "run" / "previews")
    clock = Clock(monkeypatch)
    with folder.decoding():
        run(tmp_path / "run", replace(job, previews=PreviewOptions(every=3, steps=2, shift=5.0)))
    assert clock.now == pytest.approx(2 * previews.WAIT_S, abs=2 * previews.POLL_S)
    clock.looks = 0
    with folder.decoding():
        previews.Preview(RunFolder(tmp_path / "run"), EventWriter(tmp_path / "e"), lambda: True)._await_decoder(3)
    previews.Preview(RunFolder(tmp_path / "run"), EventWriter(tmp_path / "e"), lambda: False)._await_decoder(3)
    assert clock.looks == 0


def test_a_run_without_a_node_decodes_by_itself(tmp_path, job):
    pytest.importorskip("diffusers")
    from wan_train.tools.mini_vae import wan_vae

    file = tmp_path / "vae.safetensors"
    save_file(wan_vae(6), file)
    job = replace(job, previews=PreviewOptions(every=6, steps=3), preview_vae=str(file))
    job = replace(job, data=replace(job.data, fps=8.0))
    folder, _ = run(tmp_path / "run", job)
    (event,) = [e for e in EventReader(folder.events_path).read() if e["event"] == "preview"]
    assert event["path"] == "previews/step-00000006.webp"
    with Image.open(folder.path / event["path"]) as video:
        assert (video.n_frames, video.size) == (5, (32, 32))
        assert video.info["loop"] == 0
        video.seek(1)
        video.load()
        assert video.info["duration"] == 125
    assert read_history(folder.events_path).warnings == []


def test_a_picture_is_a_video_of_one_frame(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3), dtype=np.uint8)
    for count in (1, 3):
        with Image.open(write_video(tmp_path / f"{count}.webp", frames[:count], 24.0)) as video:
            assert (video.n_frames, video.size) == (count, (24, 16))


def test_a_vae_that_is_gone_is_a_warning(tmp_path, job):
    job = replace(job, previews=PreviewOptions(every=2, steps=3), preview_vae=str(tmp_path / "gone.safetensors"))
    folder, lora = run(tmp_path / "run", job)
    (warning,) = read_history(folder.events_path).warnings
    assert "as they can't be decoded" in warning
    assert "gone.safetensors" in warning
    assert lora.is_file()
    assert len(list(PreviewFolder.of(folder).path.glob("*.safetensors"))) == 3


def test_the_first_and_the_newest_are_kept_and_of_those_between_some_of_the_whole_run(tmp_path):
    folder = PreviewFolder(tmp_path / "previews")
    for count in range(1, 121):
        step = 100 * (count - 1)
        folder.write(step, torch.full((2, 1, 1, 1), float(step)))
        folder.video_path(step).write_bytes(b"video")
        kept = [step for step, _ in folder.videos()]
        assert len(kept) == len(list(folder.path.glob("*.safetensors"))) == min(count, MOST_KEPT)
        assert kept[0] == 0
        assert kept[-NEWEST:] == list(range(max(0, step - 100 * (NEWEST - 1)), step + 1, 100))
    assert folder.read(0).sum() == 0
    gaps = [after - before for before, after in pairwise(kept[:-NEWEST])]
    assert all(fmean(gaps) / 2 < gap < 2 * fmean(gaps) for gap in gaps)
    assert kept[-NEWEST] - kept[-NEWEST - 1] < 2 * fmean(gaps)


def test_a_step_made_again_replaces_its_files(tmp_path):
    folder = PreviewFolder(tmp_path / "previews")
    for step in (0, 9):
        folder.write(step, torch.full((2, 1, 1, 1), float(step)))
        folder.video_path(step).write_bytes(b"video")
    folder.mark_path(9).touch()
    folder.write(9, torch.zeros(2, 1, 1, 1))
    assert folder.read(9).sum() == 0
    assert 9 not in dict(folder.videos())
    assert not folder.mark_path(9).exists()
    assert 0 in dict(folder.videos())


def test_what_was_just_made_is_there_whatever_is_dropped(tmp_path):
    """Checkpoints that are gone leave more previews than are kept, and a step among them is made again."""
    folder, checkpoints = PreviewFolder(tmp_path / "previews"), tmp_path / "checkpoints"
    for step in range(MOST_KEPT + 10):
        (checkpoints / f"step-{step:08d}").mkdir(parents=True)
        folder.write(step, torch.zeros(2, 1, 1, 1))
    (folder.path / "step-of-mine.safetensors").touch()
    shutil.rmtree(checkpoints)
    for step in range(MOST_KEPT + 10):
        folder.write(step, torch.ones(2, 1, 1, 1))
        assert folder.read(step).sum() == 2
    assert (folder.path / "step-of-mine.safetensors").exists()


def test_previews_after_a_resume_are_those_of_a_run_never_stopped(tmp_path, job):
    job = replace(job, previews=PreviewOptions(every=1, steps=3))
    whole, _ = run(tmp_path / "whole", job)
    with pytest.raises(RunStoppedError):
        run(tmp_path / "parts", job, stop_at=3)
    parts, _ = run(tmp_path / "parts", job)
    assert not PreviewFolder.of(parts).latents_path(3).exists()  # the stop did not wait for it
    for step in (1, 2, 4, 5, 6):
        assert torch.equal(PreviewFolder.of(parts).read(step), PreviewFolder.of(whole).read(step)), step


def test_options_by_their_names_on_nodes(job):
    settings = settings_from_names({"preview_every": 50, "preview_steps": 9, "preview_cfg": 1.0})
    assert settings.previews == PreviewOptions(every=50, steps=9, cfg=1.0)
    shown = replace(job, previews=settings.previews, preview_vae="vae.safetensors")
    assert shown.key == job.key
    assert job_from_json(job_to_json(shown)) == shown
    assert replace(job, previews=PreviewOptions(steps=3)).warnings() == []  # nobody asked for previews


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"every": -1}, "preview_every must be 0 .* got -1"),
        ({"steps": 0}, "preview_steps must be at least 1, got 0"),
        ({"cfg": float("nan")}, "preview_cfg must be at least 0, got nan; 1 is no guidance"),
        ({"shift": -1.0}, r"preview_shift must be 0 \(the official one .*\) or more, got -1"),
    ],
)
def test_options_that_cannot_work_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        PreviewOptions(**options)


@pytest.mark.parametrize(
    ("label", "stage", "chosen", "shift"),
    [
        ("wan2.2-t2v-a14b", "low", 0.0, 12.0),
        ("wan2.2-i2v-a14b", "high", 0.0, 5.0),
        ("wan2.1-t2v-14b", "single", 0.0, 5.0),
        ("wan2.2-t2v-a14b", "high", 3.0, 3.0),
    ],
)
def test_the_shift_is_the_one_of_preview_lora(job, label, stage, chosen, shift):
    previews = PreviewOptions(shift=chosen)
    made = replace(job, model=replace(job.model, label=label), stage=stage, previews=previews)
    assert preview_sampling(made, 0.875).shift == shift


def test_too_few_steps_for_the_low_expert_are_refused(job):
    job = replace(job, timesteps=replace(job.timesteps, sigma_max=0.2))
    with pytest.raises(ConfigError, match=r"preview_steps is 4, and none of these steps is below the boundary 0\.2"):
        check_previews(replace(job, previews=PreviewOptions(every=2, steps=4, shift=5.0)))
    check_previews(replace(job, previews=PreviewOptions(every=2, steps=40, shift=5.0)))
    check_previews(replace(job, stage="high", previews=PreviewOptions(every=2, steps=4, shift=5.0)))


def test_too_few_steps_for_the_high_expert_are_refused(job):
    """Only a scheduler that leaves out the highest level has so few."""
    job = replace(job, stage="high", timesteps=replace(job.timesteps, sigma_min=0.875, sigma_max=1.0))
    options = PreviewOptions(every=2, steps=2, shift=5.0, scheduler="ddim_uniform")
    with pytest.raises(ConfigError, match=r"preview_steps is 2, and none of these steps is above the boundary 0\.875"):
        check_previews(replace(job, previews=options))
    check_previews(replace(job, previews=replace(options, steps=3)))
