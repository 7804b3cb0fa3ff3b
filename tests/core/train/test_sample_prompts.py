"""Previews of several prompts: sizes, seeds, negative prompts, skip-layer guidance, the files, and a run with them."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from wan_train.core.errors import ConfigError
from wan_train.core.sample.previews import check_previews, preview_sampling, preview_shots, preview_warnings
from wan_train.core.sample.sampler import initial_noise, sample
from wan_train.core.settings.job import CaptionText, PreviewPrompt, job_from_json, job_to_json
from wan_train.core.settings.samples import SamplePrompt
from wan_train.core.train import previews
from wan_train.core.train.batches import load_context
from wan_train.core.train.events import EventReader, EventWriter, read_history
from wan_train.core.train.preview_folder import PreviewFolder, Shown
from wan_train.core.train.preview_sampling import sample_shots
from wan_train.core.train.run_folder import RunFolder
from wan_train.core.train.skip_blocks import without_blocks
from wan_train.tests.core.train.helpers import SIZE
from wan_train.tests.core.train.test_previews import learnt, staged
from wan_train.tests.core.train.test_run import run, same_weights


@pytest.fixture
def with_prompts(tmp_path, job):
    """The job with prompts, each of which says what it wants."""

    def text(number):
        path = tmp_path / f"prompt{number}.safetensors"
        save_file(
            {"context": torch.randn(6, SIZE.text_dim, generator=torch.Generator().manual_seed(90 + number))}, path
        )
        return CaptionText(path=str(path), key=f"p{number}")

    def make(*asked, stage="single", **options):
        prompts = []
        for i, one in enumerate(asked):
            wanted = SamplePrompt(prompt=f"prompt {i}", **{"name": str(i + 1), **one})
            prompts.append(PreviewPrompt(asked=wanted, text=text(i), negative=text(50 + i)))
        made = staged(job, stage, **options)
        return replace(made, data=replace(made.data, prompts=tuple(prompts)))

    return make


def alone(trainer, shot, model=None, skipping=None):
    """The latents of one video, sampled by itself."""
    trainer.model.eval()
    texts = [load_context(path, "a text")[None] for path in (shot.text_path, shot.negative_path)]
    noise = initial_noise((1, *shot.shape), shot.seed)
    latents = sample(model or trainer.model, None, noise, *texts, shot.sampling, skipping=skipping)
    trainer.model.train()
    return latents[0]


def test_each_prompt_is_sampled_as_it_asks(with_prompts):
    job = with_prompts(
        {}, {"seed": 9, "cfg": 2.0}, {"width": 64, "height": 48, "frames": 9}, {"steps": 3, "shift": 2.0},
        {"sampler": "heun", "scheduler": "karras"}, cfg=1.0
    )  # fmt: skip
    trainer = learnt(job)
    shots = preview_shots(job)
    assert [shot.shape for shot in shots] == [(16, 2, 4, 4), (16, 2, 4, 4), (16, 3, 6, 8), (16, 2, 4, 4), (16, 2, 4, 4)]
    assert [(shot.sampling.steps, shot.sampling.shift, shot.sampling.cfg) for shot in shots] == [
        (8, 5.0, 1.0), (8, 5.0, 2.0), (8, 5.0, 1.0), (3, 2.0, 1.0), (8, 5.0, 1.0),
    ]  # fmt: skip
    assert [(shot.sampling.sampler, shot.sampling.scheduler) for shot in shots[3:]] == [
        (job.previews.sampler, "simple"), ("heun", "karras"),
    ]  # fmt: skip
    found = sample_shots(trainer, shots)
    for latents, shot in zip(found, shots, strict=True):
        torch.testing.assert_close(latents, alone(trainer, shot), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[0], found[1], atol=1e-3)
    assert not torch.allclose(found[0], found[4], atol=1e-3)


def test_prompts_sampled_together_keep_their_own_negative_prompts(with_prompts):
    trainer = learnt(with_prompts({}, {}, {}, cfg=4.0))
    shots = preview_shots(trainer.job)
    for latents, shot in zip(sample_shots(trainer, shots), shots, strict=True):
        torch.testing.assert_close(latents, alone(trainer, shot), rtol=1e-4, atol=1e-4)


def test_seeds_walk_by_prompts_or_by_steps(with_prompts):
    asked = ({}, {}, {"seed": 77})

    def seeds(walk):
        return [[s.seed for s in preview_shots(with_prompts(*asked, seed=5, seed_walk=walk), step)] for step in (0, 4)]

    assert seeds("fixed") == [[5, 5, 77]] * 2
    assert seeds("prompts") == [[5, 6, 77]] * 2
    assert seeds("steps") == [[5, 5, 77], [9, 9, 77]]


@pytest.mark.parametrize("stage", ["single", "high", "low"])
def test_skip_layer_guidance_goes_away_from_the_model_without_blocks(with_prompts, stage):
    wide = {"skip_layers": "1", "skip_scale": 2.0, "skip_start": 0.0, "skip_stop": 1.0}
    trainer = learnt(with_prompts({}, {}, stage=stage, cfg=3.0, **wide))
    shots = preview_shots(trainer.job)
    found = sample_shots(trainer, shots)
    plain = [replace(shot, sampling=replace(shot.sampling, skip_scale=0.0)) for shot in shots]
    assert not torch.allclose(found[0], sample_shots(trainer, plain)[0], atol=1e-3)
    if stage == "single":

        def skipping():
            return without_blocks(trainer.model, [1])

        for latents, shot in zip(found, shots, strict=True):
            torch.testing.assert_close(latents, alone(trainer, shot, skipping=skipping), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("stage", "asked", "message"),
    [
        ("single", {"steps": 1000, "shift": 1e4}, "prompt 1: steps must lie between 1 and 999 for uni_pc"),
        ("single", {"steps": 1000, "sampler": "dpm_2"}, "prompt 1: steps must lie between 1 and 999 for dpm_2"),
        ("single", {"steps": 999, "shift": 1e4}, "prompt 1: uni_pc cannot step"),
        ("low", {"steps": 1}, "steps of the sample prompt 1 is 1, and none .* below the boundary .*: raise them, or"),
    ],
)
def test_previews_that_cannot_be_are_refused(with_prompts, stage, asked, message):
    with pytest.raises(ConfigError, match=message):
        check_previews(with_prompts(asked, stage=stage, sampler="unipc"))


def test_what_the_options_say_of_all_previews_is_told_of_previews(with_prompts):
    """A training has steps, too."""
    with pytest.raises(ConfigError, match=r"^previews: steps must lie between 1 and 999 for uni_pc"):
        check_previews(with_prompts({}, stage="single", sampler="unipc", steps=1000))
    with pytest.raises(ConfigError, match=r"^preview_steps is 1, and none .*: raise preview_steps, or"):
        check_previews(with_prompts({}, stage="low", steps=1))


def test_what_is_made_on_a_sample_has_its_size_with_a_word(with_prompts):
    asked = ({"width": 64}, {})
    given = with_prompts(*asked)
    given = replace(given, data=replace(given.data, conditioning="first frame"))
    for job, why in ((given, "given the frame"), (with_prompts(*asked, stage="low"), "starts from it")):
        assert {shot.shape for shot in preview_shots(job)} == {(16, 2, 4, 4)}
        (warning,) = preview_warnings(job)
        assert warning.startswith("previews have the size of the first held-out sample, 32x32 and 5 frames")
        assert why in warning
    assert preview_warnings(with_prompts(*asked)) == []
    assert preview_warnings(with_prompts({}, stage="low")) == []


def test_skip_layer_guidance_that_ends_before_the_low_noise_expert_begins_is_told(with_prompts):
    early, late = (with_prompts({}, stage="low", skip_layers="1", skip_stop=stop) for stop in (0.15, 0.9))
    (warning,) = preview_warnings(early)
    assert "preview_skip_layers has no effect in previews of the low noise expert alone" in warning
    assert preview_warnings(late) == preview_warnings(replace(early, stage="single")) == []


def test_prompts_that_no_preview_shows_are_told(with_prompts):
    told = "sample_prompts are not shown: preview_every is 0, which makes no previews."
    assert preview_warnings(with_prompts({}, every=0)) == [told]
    assert told not in preview_warnings(with_prompts({}))


def test_a_preview_that_no_model_takes_is_refused(with_prompts):
    with pytest.raises(ConfigError, match=r"previews of 4096x4096 with 1,025 frames .* those of the sample prompt 1"):
        check_previews(with_prompts({"width": 4096, "height": 4096, "frames": 1025}))


def test_prompts_change_no_key_and_are_read_again(with_prompts):
    job = with_prompts({"seed": 3}, {"cfg": 1.5})
    without = replace(job, data=replace(job.data, prompts=()))
    assert job.key == without.key == replace(job, previews=replace(job.previews, seed=8, at_start=True)).key
    assert job_from_json(job_to_json(job)) == job
    old = json.loads(job_to_json(without))
    del old["data"]["prompts"], old["other_expert"]
    for name in ("width", "seed", "at_start", "sampler", "scheduler", "skip_layers"):
        del old["previews"][name]
    assert job_from_json(json.dumps(old)) == without
    own = with_prompts({"seed": 3, "sampler": "lcm", "scheduler": "beta"}, {"cfg": 1.5})
    assert own.key == job.key
    assert job_from_json(job_to_json(own)) == own
    old = json.loads(job_to_json(job))
    for prompt in old["data"]["prompts"]:
        del prompt["asked"]["sampler"], prompt["asked"]["scheduler"]
    assert job_from_json(json.dumps(old)) == job


def test_a_run_shows_all_prompts_also_before_it_begins(tmp_path, job, with_prompts):
    _, plain = run(tmp_path / "plain", job)
    prompts = with_prompts({"name": "cat"}, {"name": "dog", "seed": 4}).data.prompts
    shown = replace(
        job, data=replace(job.data, prompts=prompts), previews=replace(job.previews, every=4, steps=3, at_start=True)
    )
    folder, lora = run(tmp_path / "shown", shown)
    assert same_weights(plain, lora)
    found = PreviewFolder.of(folder)
    events = [e for e in EventReader(folder.events_path).read() if e["event"] == "preview"]
    assert [(e["step"], e["prompts"]) for e in events] == [(0, 2), (4, 2), (6, 2)]
    for step in (0, 4, 6):
        first, second = (latents for _, latents in found.read_all(step))
        assert not torch.equal(first, second)
        for number in (0, 1):
            found.video_path(step, number).write_bytes(b"video")
    gallery = found.gallery()
    assert gallery["prompts"] == [{"name": "cat", "prompt": "prompt 0"}, {"name": "dog", "prompt": "prompt 1"}]
    assert [row["step"] for row in gallery["steps"]] == [0, 4, 6]
    assert [file.split("?")[0] for file in gallery["steps"][1]["files"]] == [
        "step-00000004.webp",
        "step-00000004_02.webp",
    ]
    assert [step for step, _ in found.videos()] == [0, 4, 6]
    assert losses(tmp_path / "plain") == losses(tmp_path / "shown")


def losses(folder):
    return read_history(folder / "events.jsonl").losses


def test_a_gallery_has_a_column_for_each_prompt_that_was_ever_asked_for(tmp_path):
    folder = PreviewFolder(tmp_path)
    one, two = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    folder.write_all(1, [one, two], [Shown("a", "A", 1), Shown("b", "B", 1)])
    folder.write_all(2, [two], [Shown("b", "B", 1)])
    folder.write(3, one)
    for file in tmp_path.glob("*.safetensors"):
        file.with_suffix(".webp").write_bytes(b"video")
    (tmp_path / "step-00000009_02.webp").write_bytes(b"of an unknown prompt")
    (tmp_path / "step-00000009.json").write_text("{[")
    gallery = folder.gallery()
    assert [prompt["prompt"] for prompt in gallery["prompts"]] == ["A", "B", ""]
    files = [[file and file.split("?")[0] for file in row["files"]] for row in gallery["steps"]]
    assert files == [
        ["step-00000001.webp", "step-00000001_02.webp", None],
        [None, "step-00000002.webp", None],
        [None, None, "step-00000003.webp"],
        [None, None, "step-00000009_02.webp"],
    ]


def test_fewer_prompts_leave_no_videos_of_before(tmp_path):
    folder = PreviewFolder(tmp_path)
    folder.write_all(5, [torch.zeros(1, 1, 1, 1)] * 3)
    folder.video_path(5, 2).write_bytes(b"video")
    folder.write_all(5, [torch.ones(1, 1, 1, 1)] * 2)
    assert [number for number, _ in folder.read_all(5)] == [0, 1]
    assert not folder.video_path(5, 2).exists()


def test_a_preview_larger_than_the_data_that_does_not_fit_is_left_out(tmp_path, with_prompts, monkeypatch):
    """The model's own forward, out of memory at that size alone."""
    job = with_prompts({"width": 64, "height": 64}, every=1)
    trainer = learnt(job)
    trainer.step = 1
    forward = trainer.model.forward

    def short(latents, *inputs, **given):
        if latents.shape[-1] > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(latents, *inputs, **given)

    trainer.model.forward = short
    folder = RunFolder(tmp_path)
    previews.Preview(folder, EventWriter(folder.events_path), lambda: False).make(trainer)
    (warning,) = read_history(folder.events_path).warnings
    assert "previews of 64x64 with 5 frames do not fit into memory" in warning
    assert trainer.model.training
    assert not list(tmp_path.glob("previews/*"))


def test_the_shift_of_previews_is_that_of_preview_lora(job):
    """12 for T2V A14B, and 5 for all others: what nodes/preview_nodes.py asks of the same function."""
    job = staged(job, "high", shift=0.0)
    labels = {"wan2.2-t2v-a14b": 12.0, "wan2.2-i2v-a14b": 5.0}
    for label, shift in labels.items():
        named = replace(job, model=replace(job.model, label=label))
        assert preview_sampling(named, 0.875).shift == shift
    single = replace(staged(job, "single", shift=0.0), model=replace(job.model, label="wan2.1-t2v-1.3b"))
    assert preview_sampling(single, 0.0).shift == 5.0
