"""What a run does beside its steps: how often and how long by job and plan, against what a run then does."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from wan_train.core.flow.sigmas import NUM_SIGMAS
from wan_train.core.plan.advice import explain
from wan_train.core.plan.beside import FileReads, Interlude, WorkBeside, bytes_to_stay, work_of
from wan_train.core.plan.beside_costs import DECODE, DECODE_PIXELS, READ_AGAIN
from wan_train.core.plan.choice import Choice
from wan_train.core.plan.decision import decide
from wan_train.core.plan.plan import Bucket, Gpus, Plan, Task
from wan_train.core.plan.planner import Planner
from wan_train.core.plan.planning import make_planner
from wan_train.core.plan.rhythm import Rhythm, Rhythms, rhythms_of
from wan_train.core.plan.run_costs import READ_RATE, RunCosts, learnt_beside, read_costs, write_costs
from wan_train.core.plan.spread import run_seconds
from wan_train.core.plan.step_time import forward_seconds, step_seconds
from wan_train.core.settings.job import ExpertTurns, ModelSpec
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.settings.previews import PreviewOptions
from wan_train.core.settings.saving import SavingOptions
from wan_train.core.train import previews
from wan_train.core.train.events import EventReader
from wan_train.core.train.length import checkpoints_due
from wan_train.core.train.run_folder import RunFolder
from wan_train.core.wan.checkpoint import inspect
from wan_train.core.wan.config import WanConfig
from wan_train.core.wan.model import WanTransformer
from wan_train.tests.core.plan.test_estimate import CARD
from wan_train.tests.core.plan.test_spread import GPU
from wan_train.tests.core.train.helpers import SIZE
from wan_train.tests.core.train.test_previews import staged
from wan_train.tests.core.train.test_run import run
from wan_train.tools.miniature import dit_metadata, wan_dit

GIB = 2**30
PICTURE = (16, 1, 120, 120)
WITH_EXPERT = WorkBeside(
    rhythms=Rhythms(100, Rhythm(range(0, 101, 50)), Rhythm(range(100, 101)), Rhythm(range(25, 100, 25))),
    validation={PICTURE: 8},
    preview={PICTURE: 22},
    from_files={PICTURE: 10},
    reads=(FileReads(14 * 10**9, 5),),
    pixels=960 * 960,
)


def planner(**changes):
    task = Task(sizes=WanConfig())
    free = replace(CARD, free=140 * GIB)
    costs = RunCosts(file_bytes=14 * 10**9)
    plan = Plan(precision="bf16", checkpointing=False)
    found = Planner(
        task=task, buckets=[Bucket(PICTURE)], card=free, plan=plan, steps=100, costs=costs, work=WITH_EXPERT
    )
    return replace(found, **changes)


def with_held_out(job, number=1, **loop):
    first, *others = job.data.samples
    held = [replace(first, name=f"held {n}", held_out=True) for n in range(number)]
    return replace(job, data=replace(job.data, samples=(first, *others, *held)), loop=replace(job.loop, **loop))


def counts(rhythms, step=-1):
    return tuple(getattr(rhythms, name).after(step) for name in ("validations", "previews", "checkpoints"))


def told(folder, *kinds):
    events = EventReader(folder.events_path).read()
    return {kind: [event["step"] for event in events if event["event"] == kind] for kind in kinds}


RHYTHMS = [
    ({"validate_every": 4, "checkpoint_every": 3}, {"every": 4, "at_start": True}, {}),
    ({"validate_every": 7, "checkpoint_every": 2}, {"every": 5}, {"keep_best": True}),
    ({"validate_every": 2, "gradient_accumulation": 2}, {"every": 3}, {"every_epochs": 1, "keep_best": True}),
]


@pytest.mark.parametrize(("loop", "shown", "saving"), RHYTHMS)
def test_a_run_does_as_often_what_was_counted(tmp_path, job, loop, shown, saving):
    job = replace(
        with_held_out(job, **loop), previews=PreviewOptions(steps=3, shift=1.0, **shown), saving=SavingOptions(**saving)
    )
    rhythms = rhythms_of(job)
    folder, _ = run(tmp_path / "run", job)
    done = told(folder, "validation", "preview", "shown", "checkpoint")
    made = done["validation"], done["preview"], [step for step in done["checkpoint"] if step < job.loop.steps]
    assert counts(rhythms) == tuple(map(len, made))
    assert done["shown"] == done["preview"]
    for name, steps in zip(("validations", "previews", "checkpoints"), made, strict=True):
        rhythm = getattr(rhythms, name)
        assert [step for step in range(job.loop.steps + 1) if rhythm.is_due(step)] == steps
        assert [rhythm.after(n) for n in range(job.loop.steps + 1)] == [
            sum(step > n for step in steps) for n in range(job.loop.steps + 1)
        ]


@pytest.mark.parametrize("epochs", [0, 1, 2, 5])
@pytest.mark.parametrize("accumulation", [1, 2, 3, 4, 7])
def test_checkpoints_are_counted_as_they_come(job, epochs, accumulation):
    loop = replace(job.loop, steps=50, checkpoint_every=7, gradient_accumulation=accumulation)
    job = replace(job, loop=loop, saving=SavingOptions(every_epochs=epochs))
    rhythm, is_due = rhythms_of(job).checkpoints, checkpoints_due(job)
    assert [step for step in range(1, 50) if rhythm.is_due(step)] == [step for step in range(1, 50) if is_due(step)]
    assert rhythm.after(-1) == sum(map(is_due, range(1, 50)))


def test_a_long_run_is_counted_without_going_through_its_steps(job):
    loop = replace(job.loop, steps=100_000_000, checkpoint_every=1, validate_every=1)
    rhythms = rhythms_of(replace(with_held_out(job), loop=loop, previews=PreviewOptions(every=3)))
    assert counts(rhythms) == (100_000_001, 33_333_334, 99_999_999)
    assert counts(rhythms, 99_999_990) == (10, 4, 9)


def test_without_samples_and_previews_nothing_is_done_but_checkpoints(job):
    assert counts(rhythms_of(job)) == (0, 0, 2)


@pytest.fixture
def other(tmp_path):
    path = tmp_path / "the_other_expert.safetensors"
    save_file(wan_dit(SIZE, seed=77), path, metadata=dit_metadata(SIZE))
    return inspect(path)


@pytest.mark.parametrize(
    ("stage", "options"),
    [
        ("high", {"cfg": 3.0}),
        ("low", {"cfg": 1.0, "sampler": "dpm_2"}),
        ("low", {"cfg": 3.0, "skip_layers": "1", "skip_stop": 0.9}),
        ("single", {"cfg": 2.0}),
        ("high alone", {}),
    ],
)
def test_forwards_and_reads_are_those_that_a_run_makes(tmp_path, job, other, monkeypatch, stage, options):
    """Of the model in training, of the other expert, and how often its file is read."""
    calls = Counter()
    forward, velocity = WanTransformer.forward, previews.OtherExpert.velocity

    def counted(self, latents, *args, **named):
        calls["trained on" if torch.is_grad_enabled() else "forwards"] += latents.shape[0]
        return forward(self, latents, *args, **named)

    def read(self, given, latents, *args):
        calls["reads"] += 1
        calls["of the other"] += latents.shape[0]
        return velocity(self, given, latents, *args)

    monkeypatch.setattr(WanTransformer, "forward", counted)
    monkeypatch.setattr(previews.OtherExpert, "velocity", read)
    job = staged(with_held_out(job, 2, validate_every=100), stage.split()[0], every=100, **options)
    if stage in ("high", "low"):
        job = replace(job, other_expert=ModelSpec(path=str(other.path), identity=other.identity))
    work = work_of(job)
    run(tmp_path / "run", job)
    validated = 2 * sum(work.validation.values())
    assert validated == 2 * 2 * NUM_SIGMAS
    assert sum(work.from_files.values()) == calls["of the other"]
    assert sum(read.times for read in work.reads) == calls["reads"]
    assert sum(work.preview.values()) == calls["forwards"] - calls["of the other"] - validated
    assert [read.file_bytes for read in work.reads] == ([other.path.stat().st_size] if calls["reads"] else [])


def test_ranks_share_the_held_out_samples(job):
    job = with_held_out(job, 5)
    assert [sum(work_of(job, sharing=ranks).validation.values()) for ranks in (1, 2, 4)] == [40, 24, 16]
    decision = decide(job, inspect(job.model.path), torch.device("cpu"))
    work = make_planner(job, decision, CARD, Gpus(4, 2)).work
    assert work is not None
    assert sum(work.validation.values()) == 24


def test_previews_that_cannot_be_made_count_nothing(job):
    """They are refused elsewhere."""
    assert work_of(staged(job, "high", sampler="dpm_2", steps=999)).preview
    assert work_of(staged(job, "high", sampler="dpm_2", steps=1000)).preview == {}


def test_two_experts_of_one_lora_change_places(job, other):
    spec = ModelSpec(path=str(other.path), identity=other.identity)
    turns = ExpertTurns(every=1, boundary=0.875)
    shared = replace(staged(with_held_out(job), "single"), stage="both", other_expert=spec, turns=turns)
    work = work_of(shared)
    assert (work.validation_changes, work.preview_changes, work.reads) == (2, 2, ())


def test_a_forward_is_a_part_of_a_step():
    """Of one that computes everything twice as of one that swaps."""
    task, bucket = Task(sizes=WanConfig()), Bucket(PICTURE)
    for plan in (Plan(precision="bf16"), Plan(precision="bf16", streamed_blocks=40), Plan(precision="fp8")):
        step, forward = step_seconds(task, bucket, plan, CARD), forward_seconds(task, bucket, plan, CARD)
        assert 0.2 * step < forward < 0.5 * step
    slow = forward_seconds(task, bucket, Plan(precision="bf16", streamed_blocks=40), replace(CARD, to_device=1e9))
    assert slow == pytest.approx(28.0, rel=0.05)  # by its copies


def test_an_expert_stays_where_it_fits_and_is_read_again_where_not():
    roomy = planner()
    large, enough, less = (
        one.describe(one.plan)
        for one in (replace(roomy, card=replace(roomy.card, free=n * GIB)) for n in (140, 75, 50))
    )
    assert enough.vram > 65 * GIB  # what steps take for a while is free between them
    assert enough.beside == large.beside
    difference = less.beside.previews.seconds - large.beside.previews.seconds
    assert difference == pytest.approx(5 * 14e9 / READ_AGAIN - 14e9 / READ_RATE)
    nothing = replace(WITH_EXPERT, preview={}, from_files={}, reads=())
    bare = replace(roomy, work=nothing).describe(roomy.plan).beside.previews.seconds
    assert bare == pytest.approx(DECODE + 960 * 960 / DECODE_PIXELS)
    needed = bytes_to_stay(5 * 10**9, 3600, 5120, 2)
    assert needed == 5 * 10**9 + 24 * 3600 * 5120 * 2 + 2 * GIB


def test_it_is_part_of_the_promise_and_said_where_it_is_a_second():
    these = planner()
    choice = replace(these.describe(these.plan), seconds=0.43, start_seconds=12.4, sizes_seconds=17.3)
    beside = replace(
        choice.beside, validations=Interlude(3, 4.0), previews=Interlude(1, 65.0), checkpoints=Interlude(3, 0.3)
    )
    choice = replace(choice, beside=beside)
    assert choice.run_seconds(100) == pytest.approx(12.4 + 17.3 + 43 + 12 + 65 + 0.9)
    assert explain(these, choice, steps=100).endswith(
        "about 2 min 31 s in all for 100 steps: start 12 s, first step of 3 sizes 17 s, steps 43 s, validation 12 s, "
        "previews 1 min 5 s".replace("3 sizes", "the size")
    )


def test_the_same_plan_is_chosen_with_it_as_without():
    for free in (140, 40, 20, 10):
        these = planner(card=replace(CARD, free=free * GIB))
        assert these.choose().plan == replace(these, work=None).choose().plan


def test_swapped_blocks_make_a_validation_longer():
    these = planner(card=replace(CARD, free=140 * GIB, to_device=2e9))
    plain, swapped = (these.describe(replace(these.plan, streamed_blocks=n)).beside.validations for n in (0, 40))
    assert swapped.seconds > 8 * 14 > 10 * plain.seconds


def test_what_a_machine_has_shown_is_kept_and_files_of_before_say_nothing(tmp_path):
    path, these = tmp_path / "costs.json", planner()
    expected = these.describe(these.plan).beside
    took = {"validations": [9.0, 3 * expected.validations.seconds], "previews": [expected.previews.seconds / 2]}
    costs = learnt_beside(these.costs, expected, these.costs, **took)
    assert (costs.validation, costs.preview) == pytest.approx((3.0, 0.5))
    write_costs(path, "1", costs)
    kept = read_costs(path, "1")
    assert (kept.validation, kept.preview) == (costs.validation, costs.preview)
    again = replace(these, costs=kept)
    after = again.describe(these.plan).beside
    assert after.validations.seconds == pytest.approx(3 * expected.validations.seconds)
    assert after.previews.seconds == pytest.approx(expected.previews.seconds / 2)
    took = {"validations": [3 * expected.validations.seconds], "previews": []}
    assert learnt_beside(kept, after, kept, **took).validation == pytest.approx(3.0)
    assert learnt_beside(kept, after, kept, validations=[1e9], previews=[]).validation == 10.0
    path.write_text('{"version": "1", "start": 1.5, "end": 2, "kinds": {}, "compiled": []}')
    assert read_costs(path, "1") == RunCosts(start=1.5, end=2.0)


def test_a_run_tells_it_and_teaches_the_next_one(tmp_path, job):
    """Within a budget also on the CPU: a plan of a miniature is far off, which the next one knows."""
    job = with_held_out(job, 2, validate_every=3)
    job = replace(
        job, memory=MemoryOptions(budget_gb=3.0), previews=PreviewOptions(every=6, steps=3, shift=1.0, cfg=1.0)
    )
    events = []
    for name in ("one", "two"):
        (tmp_path / "runs").mkdir(exist_ok=True)
        folder, _ = run(tmp_path / "runs" / name, job)
        events.append(EventReader(folder.events_path).read())
    first, second = (next(e for e in these if e["event"] == "plan")["beside"] for these in events)
    assert {name: one["count"] for name, one in first.items()} == {"validations": 3, "previews": 1, "checkpoints": 2}
    assert first["previews"]["seconds"] > DECODE
    took = next(e["seconds"] for e in events[0] if e["event"] == "shown")
    assert took < 0.9 * first["previews"]["seconds"]
    assert second["previews"]["seconds"] == pytest.approx(max(took, 0.1 * first["previews"]["seconds"]), rel=0.05)
    assert second["validations"] != first["validations"]
    assert all(e["seconds"] > 0 for e in events[0] if e["event"] == "checkpoint")
    scratch = RunFolder(Path(folder.path)).scratch_path
    assert list(scratch.rglob("costs-*.json"))


def test_spreading_experts_over_gpus_counts_it(job, model_path):
    info = inspect(model_path)
    bare, more = (
        run_seconds(each, info, 1, device=GPU, folder=None, card=CARD)[0] for each in (job, with_held_out(job, 3))
    )
    assert more > bare


def test_a_choice_without_it_takes_what_it_took():
    choice = Choice(Plan(), {}, 0, 0, 2.0, start_seconds=3.0)
    assert choice.run_seconds(10) == 23.0
