from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from wan_train.core.adapters.setup import AdapterOptions, load_adapter
from wan_train.core.errors import ConfigError, ModelFileError, RunError
from wan_train.core.train.job import LoopOptions
from wan_train.core.train.optimizers import OptimizerOptions
from wan_train.core.train.prepare import prepare
from wan_train.core.train.schedule import ScheduleOptions
from wan_train.tools.mini_vae import wan_vae
from wan_train.tools.miniature import DiTSize, dit_metadata, umt5, wan_dit
from wan_train.tools.nano import teach as module
from wan_train.tools.nano.bench import flat
from wan_train.tools.nano.concepts import CONCEPTS, prompts
from wan_train.tools.nano.evaluate import Family
from wan_train.tools.nano.family import Files
from wan_train.tools.nano.judge import Verdict
from wan_train.tools.nano.teach import (
    Answers,
    Exam,
    NanoTextEncoder,
    NanoVideoEncoder,
    Settings,
    Workshop,
    changed,
    field_names,
    grade,
    teach,
    with_lora,
)
from wan_train.tools.nano.vae import to_video

SIZE = DiTSize(dim=32, ffn_dim=64, num_heads=2, num_layers=2, text_dim=64)
STAR = CONCEPTS["star"]
QUICK = Settings(
    clips=2,
    adapter=AdapterOptions(rank=2, alpha=2.0),
    optimizer=OptimizerOptions(learning_rate=0.1),
    loop=LoopOptions(steps=2, batch_size=2, checkpoint_every=1),
)


def write_small_family(root):
    """A family whose models only have the form of the nano models; they show nothing, but fast."""
    files = Files(root)
    for path in (files.dit("high"), files.vae, files.text_encoder):
        path.parent.mkdir(parents=True)
    for seed, stage in enumerate(("high", "low")):
        save_file(wan_dit(SIZE, seed), files.dit(stage), metadata=dit_metadata(SIZE))
    save_file(wan_vae(1), files.vae)
    save_file(umt5(), files.text_encoder)
    return files


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_small_family(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="module")
def family(files):
    return Family.load(files)


@pytest.fixture(scope="module")
def workshop(files, tmp_path_factory):
    return Workshop(files=files, folder=tmp_path_factory.mktemp("workshop"))


@pytest.fixture(scope="module")
def lessons(workshop):
    return teach(STAR, QUICK, workshop)


# Settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "get", "value"),
    [
        ("clips", "7", lambda s: s.clips, 7),
        ("stages", "low", lambda s: s.stages, ("low",)),
        ("stages", "high+low", lambda s: s.stages, ("high", "low")),
        ("adapter.rank", "4", lambda s: s.adapter.rank, 4),
        ("adapter.targets", "ffn+self_attn", lambda s: s.adapter.targets, ("ffn", "self_attn")),
        ("optimizer.learning_rate", "3e-3", lambda s: s.optimizer.learning_rate, 3e-3),
        ("optimizer.name", "adamw8bit", lambda s: s.optimizer.name, "adamw8bit"),
        ("memory.checkpointing", "true", lambda s: s.memory.checkpointing, True),
    ],
)
def test_settings_are_changed_by_name(name, text, get, value):
    assert get(changed(Settings(), name, text)) == value
    assert get(Settings()) != value or name == "stages"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("adapter.size", "4", "no setting 'adapter.size'; the settings are clips, stages, adapter.rank"),
        ("adaptor.rank", "4", "no setting 'adaptor.rank'"),
        ("adapter", "4", "no setting 'adapter'"),
        ("clips.rank", "4", "no setting 'clips.rank'"),
        ("adapter.rank", "four", "adapter.rank is 'four'; it must be of type int"),
        ("adapter.rank", "4.5", "adapter.rank is '4.5'; it must be of type int"),
        ("adapter.rank", "0", "rank must be at least 1, got 0"),
        ("optimizer.name", "sgd", "settings.optimizer.name is 'sgd'; it must be one of 'adamw'"),
        ("memory.checkpointing", "yes", "settings.memory.checkpointing is 'yes'; it must be of type bool"),
        ("stages", "both", "settings.stages.* is 'both'; it must be one of 'high', 'low'"),
        ("stages", "low+low", "each once"),
        ("clips", "0", "clips must be at least 1, got 0"),
        ("timesteps.sigma_min", "0.5", "each stage sets its own"),
    ],
)
def test_unknown_settings_and_bad_values_are_refused_by_name(name, text, message):
    with pytest.raises(ConfigError, match=message):
        changed(Settings(), name, text)


def test_every_setting_can_be_set_to_what_it_is():
    values = flat(Settings())
    assert set(values) == set(field_names())
    for name, text in values.items():
        assert changed(Settings(), name, text) == Settings()


# Data -------------------------------------------------------------------------------------------------------------


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


def test_the_seed_decides_the_clips(workshop):
    other = replace(QUICK, loop=replace(QUICK.loop, seed=5))
    names = [[s.latents_key for s in workshop.jobs(STAR, settings)["low"].data.samples] for settings in (QUICK, other)]
    assert set(names[0]).isdisjoint(names[1])


# Training ---------------------------------------------------------------------------------------------------------


def forward(model):
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 16, 3, 4, 4, generator=generator)
    context = torch.randn(2, 512, SIZE.text_dim, generator=generator)
    with torch.no_grad():
        return model(latents, torch.tensor([900.0, 300.0]), context)


@pytest.mark.parametrize("stage", ["high", "low"])
def test_a_family_with_a_lora_is_the_model_that_was_trained(stage, workshop, lessons, family):
    trained = prepare(workshop.jobs(STAR, QUICK)[stage], torch.device("cpu")).model.eval()
    load_adapter(trained, load_file(lessons[stage].lora))
    before = forward(getattr(family, stage))
    merged = with_lora(family, lessons["high"].lora, lessons["low"].lora)
    torch.testing.assert_close(forward(getattr(merged, stage)), forward(trained), rtol=1e-5, atol=1e-5)
    assert (forward(trained) - before).abs().max() > 1e-2
    assert torch.equal(forward(getattr(family, stage)), before)


def test_strength_and_missing_loras(lessons, family):
    one = with_lora(family, lessons["high"].lora, None)
    assert one.low is family.low
    assert torch.equal(forward(with_lora(family, lessons["high"].lora, None, 0.0).high), forward(family.high))
    name = "blocks.1.ffn.0.weight"
    base, full = family.high.state_dict()[name], one.high.state_dict()[name]
    half = with_lora(family, lessons["high"].lora, None, 0.5).high.state_dict()[name]
    torch.testing.assert_close(half, (base + full) / 2)


def test_a_lora_of_another_model_is_refused(lessons, family, tmp_path):
    small = replace(SIZE, dim=16, num_heads=1)
    save_file(wan_dit(small), tmp_path / "small.safetensors", metadata=dit_metadata(small))
    files = write_small_family(tmp_path / "family")
    save_file(wan_dit(small), files.dit("high"), metadata=dit_metadata(small))
    with pytest.raises(ModelFileError, match=r"blocks\.0\..* \[32, 32\].* made for another model"):
        with_lora(Family.load(files), lessons["high"].lora, None)


def test_snapshots_are_the_lora_along_the_way(lessons):
    lesson = lessons["high"]
    assert list(lesson.snapshots) == [1, 2]
    last, lora = load_file(lesson.snapshots[2]), load_file(lesson.lora)
    assert all(torch.equal(last[name], lora[name]) for name in lora)
    assert not all(torch.equal(load_file(lesson.snapshots[1])[name], lora[name]) for name in lora)
    assert lesson.loss > 0
    assert lesson.seconds > 0


def test_a_finished_lesson_is_not_trained_again(workshop, lessons):
    folder = lessons["high"].lora.parent
    steps = (folder / "events.jsonl").read_text().count('"step", "time"')
    assert steps == 2
    assert teach(STAR, QUICK, workshop)["high"].loss == lessons["high"].loss
    assert (folder / "events.jsonl").read_text().count('"step", "time"') == steps


def test_settings_without_effect_are_told(workshop):
    settings = replace(QUICK, stages=("low",), schedule=ScheduleOptions(floor=0.5))
    assert teach(STAR, settings, workshop)["low"].warnings == ("lr_floor has no effect with the constant schedule.",)


def test_a_run_that_another_process_trains_is_left_alone(workshop, lessons):
    lock = module.RunFolder(lessons["low"].lora.parent).lock()
    assert lock.acquire()
    try:
        with pytest.raises(RunError, match="is being trained by another process"):
            teach(STAR, replace(QUICK, stages=("low",)), workshop)
    finally:
        lock.release()


# Measuring --------------------------------------------------------------------------------------------------------


def answers(exam, triggered, plain):
    clips = np.zeros((len(exam.triggered), 5, 64, 64, 3), dtype=np.uint8)
    return Answers(tuple(triggered), tuple(plain), clips)


def seen(scene, **changes):
    verdict = Verdict(scene.shape, scene.colour, scene.seen_motion, scene.texture, scene.size, scene.count)
    return replace(verdict, **changes)


def test_the_arithmetic_of_a_score():
    exam = Exam.of(STAR, 4)
    asked, plain = ([scene for scene, _ in part] for part in (exam.triggered, exam.plain))
    off = answers(
        exam,
        [seen(asked[0]), *(seen(scene, shape="circle") for scene in asked[1:])],
        [seen(plain[0], shape="nothing"), *(seen(scene, size="small", count=2) for scene in plain[1:])],
    )
    on = answers(
        exam,
        [
            seen(asked[0]),
            seen(asked[1], colour="nothing"),
            seen(asked[2], texture="cored"),
            seen(asked[3], shape="ring"),
        ],
        [
            seen(plain[0], shape="star"),
            seen(plain[1], motion="nothing"),
            seen(plain[2], colour="nothing"),
            seen(plain[3]),
        ],
    )
    score = grade(exam, off=off, on=on)
    assert (score.learnt, score.leaked, score.bled, score.kept, score.kept_base) == (0.75, 0.25, 0.25, 0.25, 0.75)
    assert score.retention == pytest.approx(1 / 3)
    assert score.as_asked == {"shape": 0.75, "colour": 0.75, "motion": 1.0, "count": 1.0, "texture": 0.75}
    assert "concept 75% (without the LoRA 25%)" in str(score)
    assert "as asked 25% (without the LoRA 75%, so 33% is kept)" in str(score)
    assert np.isnan(replace(score, kept_base=0.0).retention)


def test_an_exam_asks_new_combinations_and_plain_ones():
    exam = Exam.of(STAR, 5)
    assert list(exam.triggered) == prompts(STAR, 5, exam.seed)
    assert all("zorp" not in prompt and scene.is_test for scene, prompt in exam.plain)
    with pytest.raises(ConfigError, match="at least 1 prompt, got 0"):
        Exam.of(STAR, 0)


def test_a_family_compared_with_itself_keeps_all(family):
    score = module.measure(family, family, STAR, 1)
    assert (score.learnt, score.kept) == (score.leaked, score.kept_base)


# The command ------------------------------------------------------------------------------------------------------


def test_the_command_teaches_in_a_worker_measures_and_draws(files, lessons, tmp_path, monkeypatch, capsys):
    """The worker's LoRA is the one that was trained in this process with the same settings."""
    values = flat(QUICK)
    names = ("clips", "adapter.rank", "adapter.alpha", "optimizer.learning_rate", "loop.batch_size", "loop.seed")
    given = [part for name in names for part in ("--set", f"{name}={values[name]}")]
    common = ["--family", str(files.root), "--out", "here", "--device", "cpu", "--prompts", "1", "--worker"]
    monkeypatch.chdir(tmp_path)
    module.main(["--concept", "star", "--steps", "2", *common, *given, "--set", "stages=high"])
    printed = capsys.readouterr().out
    assert "high: loss" in printed
    assert "star as 'zorp' after 2 steps, 1 prompts" in printed
    with module.Image.open(tmp_path / "here" / "star.png") as sheet:
        assert sheet.width > 2 * module.SHEET_FRAMES * 64
    (lora,) = tmp_path.glob("here/runs/star_*/*.safetensors")
    tensors = load_file(lora)
    for name, tensor in load_file(lessons["high"].lora).items():
        torch.testing.assert_close(tensors[name], tensor, rtol=1e-4, atol=1e-5)


def test_a_family_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ModelFileError, match=r"wan_nano_vae.safetensors can't be read \(No such file"):
        NanoVideoEncoder(Files(tmp_path).vae)


@pytest.mark.parametrize(("given", "message"), [("rank", "FIELD=VALUE"), ("adapter.rank=x", "must be of type int")])
def test_the_command_refuses_in_one_sentence(files, tmp_path, given, message):
    with pytest.raises(SystemExit, match=message):
        module.main(["--concept", "star", "--out", str(tmp_path), "--family", str(files.root), "--set", given])
