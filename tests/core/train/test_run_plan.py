"""A run chooses its plan, tells it, and goes on with a leaner one: its losses and its LoRA stay what they are."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from wan_train.core.errors import ConfigError, RunError
from wan_train.core.facts import num_tokens
from wan_train.core.objective.forwards import Forwards
from wan_train.core.plan import learnt
from wan_train.core.plan.card import read_correction
from wan_train.core.plan.decision import decide
from wan_train.core.plan.measure import NUM_MEASURED, WARM_UP, correction_kind
from wan_train.core.plan.planner import MARGIN, MARGIN_BYTES, Planner
from wan_train.core.plan.planning import make_planner, plan_of
from wan_train.core.plan.probe import DeviceProbe
from wan_train.core.plan.step_memory import MemoryPeaks
from wan_train.core.settings.job import Job
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.settings.previews import PreviewOptions
from wan_train.core.settings.regularizers import RegularizerOptions
from wan_train.core.train import loop, previews, run_plan, validation
from wan_train.core.train.events import EventReader, EventWriter, read_history
from wan_train.core.train.loop import Trainer
from wan_train.core.train.run_folder import RunFolder
from wan_train.core.train.run_plan import RunPlan
from wan_train.core.wan.checkpoint import inspect
from wan_train.tests.core.train.helpers import DEEP, compute_loss
from wan_train.tests.core.train.test_features import train

CPU = torch.device("cpu")
LARGE = MemoryOptions(budget_gb=3.0)  # for a miniature


@pytest.fixture
def deep(job: Job, deep_model, card, monkeypatch):
    """A job whose model has some blocks; its device is measured once for all tests."""
    monkeypatch.setattr(learnt, "probe", lambda *_, **__: DeviceProbe(card=card))
    return replace(job, model=deep_model, loop=replace(job.loop, steps=4))


@pytest.fixture(scope="module")
def known():
    return {}


@pytest.fixture
def plain(tmp_path, deep, known):
    """Losses and LoRA of `deep` as it is, trained once for all tests."""
    if not known:
        known["losses"], known["lora"], _ = train(tmp_path, deep, "plain")
    return known["losses"], known["lora"]


@pytest.fixture
def short_of_memory(monkeypatch):
    """Makes the steps of these numbers fail, each as often as it is named."""
    failing = []
    train_step = Trainer.train_step

    def step(self):
        if self.step in failing:
            failing.remove(self.step)
            compute_loss(self, self.batches.get(self.step), self.step)[0].mean().backward()  # gradients are left behind
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        return train_step(self)

    monkeypatch.setattr(Trainer, "train_step", step)
    return failing


def planner_of(job, card) -> Planner:
    return make_planner(job, decide(job, inspect(job.model.path), CPU), card)


def within(num_bytes, **options):
    """Memory options whose budget is `num_bytes` and the margin that is kept free."""
    return MemoryOptions(budget_gb=(num_bytes + MARGIN_BYTES) / (1 - MARGIN) / 2**30, **options)


def plans(tmp_path, name):
    path = tmp_path / "runs" / name / "events.jsonl"
    return [event for event in EventReader(path).read() if event["event"] == "plan"]


def same(lora, other):
    return lora.keys() == other.keys() and all(torch.equal(lora[name], other[name]) for name in lora)


def test_without_a_budget_the_cpu_trains_what_the_job_says(tmp_path, job: Job):
    losses, lora, _ = train(tmp_path, job, "auto")
    found, other, warnings = train(tmp_path, replace(job, memory=MemoryOptions(plan="manual")), "manual")
    assert found == losses
    assert same(lora, other)
    assert warnings == []
    assert plans(tmp_path, "auto") == plans(tmp_path, "manual") == []


def test_a_plan_is_told_before_the_model_is_loaded(tmp_path, deep: Job, plain, monkeypatch):
    told = []
    prepare = run_plan.prepare

    def load(*args, **options):
        told.extend(plans(tmp_path, "planned"))
        return prepare(*args, **options)

    monkeypatch.setattr(run_plan, "prepare", load)
    losses, lora = plain
    found, other, warnings = train(tmp_path, replace(deep, memory=LARGE), "planned")
    assert found == losses
    assert same(lora, other)
    assert warnings == []
    (event,) = told
    assert event["plan"]["checkpointing"] is False  # a small clip need not compute anything twice
    assert event["message"].startswith("0.1M fp32, 32x32x5: 0.")
    assert " of 3.0 GB, about " in event["message"]
    assert "no gradient checkpointing" in event["message"]
    assert " in all for 4 steps: start " in event["message"]
    assert "first step of 2 sizes" in event["message"]
    assert 0 < event["vram"] < 3 * 2**30
    assert event["ram"] > 0
    assert event["seconds"] > 0
    assert "step" not in event
    assert event["start_seconds"] > 0
    assert event["sizes_seconds"] > 0
    assert sum(size["share"] for size in event["sizes"].values()) == pytest.approx(1.0, abs=1e-3)
    assert plans(tmp_path, "planned") == told


def test_a_small_budget_streams_and_gives_the_same_to_the_bit(tmp_path, deep: Job, plain, card):
    losses, lora = plain
    least = planner_of(deep, card).leanest().vram
    found, other, warnings = train(tmp_path, replace(deep, memory=within(least + 100)), "small")
    assert found == losses
    assert same(lora, other)
    assert warnings == []
    (event,) = plans(tmp_path, "small")
    assert event["plan"]["streamed_blocks"] == DEEP
    assert event["vram"] <= least + 100
    assert f"block swap of {DEEP} of {DEEP} blocks" in event["message"]


def test_what_the_user_has_set_stays(tmp_path, deep: Job):
    memory = replace(LARGE, streamed_blocks=3, stream_from="pageable")
    train(tmp_path, replace(deep, memory=memory), "pinned")
    (event,) = plans(tmp_path, "pinned")
    assert (event["plan"]["streamed_blocks"], event["plan"]["stream_from"]) == (3, "pageable")
    assert event["plan"]["checkpointing"] is True


def test_each_size_keeps_its_own_attention(tmp_path, deep: Job, card, monkeypatch):
    """The samples have 8 and 6 tokens; the budget suffices for the attention of half of the blocks with 8."""
    deep = replace(deep, loop=replace(deep.loop, gradient_accumulation=2))  # else gradients take more than attention
    losses, lora, _ = train(tmp_path, deep, "plain")
    pins = {"offload_inputs": True, "streamed_blocks": 1, "stream_from": "pageable"}
    planner = replace(planner_of(deep, card), options=MemoryOptions(**pins))
    half = planner.describe(replace(planner.plan, keep_attention=DEEP // 2, **pins))
    memory = within(half.vram + 1, **pins)
    marks = {}
    pred = Forwards.pred

    def look(self, noisy):
        result = pred(self, noisy)
        _, _, frames, height, width = noisy.latents.shape
        marks[frames * height * width // 4] = sum(block.keeps_attention for block in self._model.blocks)
        return result

    monkeypatch.setattr(Forwards, "pred", look)
    found, other, _ = train(tmp_path, replace(deep, memory=memory), "by_size")
    assert marks[8] == DEEP // 2 < marks[6]
    assert found == losses
    assert same(lora, other)
    (event,) = plans(tmp_path, "by_size")
    assert event["keep_attention"] == {str(tokens): count for tokens, count in marks.items()}
    assert event["plan"]["keep_attention"] == marks[8]


def test_what_does_not_fit_is_refused_before_the_model_is_loaded(tmp_path, deep: Job, card, monkeypatch):
    """On any device but the CPU, of which nothing is asked before the model is loaded."""
    long = replace(deep.data.samples[0], shape=(16, 21, 60, 104))
    job = replace(deep, data=replace(deep.data, samples=(long,)))
    least = planner_of(job, card).leanest().vram
    job = replace(job, memory=within(round(1.1 * least), checkpointing=False))
    monkeypatch.setattr(run_plan, "prepare", lambda *_, **__: pytest.fail("the model is loaded"))
    events = EventWriter(tmp_path / "events.jsonl")
    with pytest.raises(ConfigError, match="832x480x81 does not fit: the leanest plan takes") as error:
        RunPlan(job, inspect(job.model.path), torch.device("meta"), events=events, scratch=tmp_path)
    assert "It would with checkpointing left at auto; or with at most " in str(error.value)
    assert str(error.value).endswith("To try all the same, set plan to manual.")
    assert not events.path.exists()


def test_the_cpu_goes_on_with_the_leanest_plan(tmp_path, deep: Job, plain):
    losses, lora = plain
    found, other, warnings = train(tmp_path, replace(deep, memory=MemoryOptions(budget_gb=0.01)), "tiny")
    assert found == losses
    assert same(lora, other)
    assert [w for w in warnings if "does not fit" in w and w.endswith("goes on with the leanest plan.")] == warnings
    assert len(warnings) == 1
    assert plans(tmp_path, "tiny")[0]["plan"]["streamed_blocks"] == DEEP


@pytest.mark.grid(2)
@pytest.mark.parametrize(
    "memory",
    [
        MemoryOptions(checkpointing=False, plan="manual"),
        MemoryOptions(checkpointing=False, attention="auto"),
        MemoryOptions(checkpointing=False, budget_gb=3.0),
        LARGE,
    ],
    ids=["manual", "not planned", "pinned", "planned"],
)
def test_a_run_goes_on_with_less(tmp_path, deep: Job, plain, short_of_memory, memory):
    losses, lora = plain
    short_of_memory.append(2)
    found, other, _ = train(tmp_path, replace(deep, memory=memory), "short")
    assert found == losses
    assert same(lora, other)
    *planned, changed = plans(tmp_path, "short")
    assert len(planned) == (1 if memory.budget_gb else 0)
    assert changed["step"] == 2
    assert changed["message"].startswith("The GPU's memory ran out at step 3: the run goes on with ")
    assert "no step is lost. 0.1M fp32, 32x32x5: " in changed["message"]
    assert changed["plan"]["checkpointing"]
    assert all(changed["vram"] < event["vram"] for event in planned)
    assert changed["message"] in read_history(tmp_path / "runs" / "short" / "events.jsonl").warnings


@pytest.mark.parametrize("on", [True, False])
def test_the_optimizers_state_is_where_the_plan_has_it(tmp_path, deep: Job, plain, short_of_memory, monkeypatch, on):
    """From the start, and after a step down."""
    losses, lora = plain
    held, wanted = [], MemoryOptions(offload_optimizer=on, plan="manual")
    step_down, update = RunPlan.step_down, loop.update_if

    def turn(self, failed, shortage):
        found = step_down(self, failed, shortage)
        return found and replace(found, plan=replace(found.plan, offload_optimizer=not on))

    def watch(good, optimizer):
        held.append(optimizer.is_offloaded)
        return update(good, optimizer)

    monkeypatch.setattr(RunPlan, "step_down", turn)
    monkeypatch.setattr(loop, "update_if", watch)
    short_of_memory.append(2)
    found, other, warnings = train(tmp_path, replace(deep, memory=replace(wanted, checkpointing=False)), "state")
    assert held == [on, on, not on, not on]
    assert found == losses
    assert same(lora, other)
    assert [line for line in warnings if "offload" in line] == []


def test_a_state_of_8_bits_stays_and_that_is_told(tmp_path, job: Job):
    pytest.importorskip("bitsandbytes")
    job = replace(job, loop=replace(job.loop, steps=1), optimizer=replace(job.optimizer, name="adamw8bit"))
    told = train(tmp_path, replace(job, memory=MemoryOptions(offload_optimizer=True)), "a")[2]
    assert told == ["offload_optimizer has no effect on adamw8bit, whose state stays on the GPU."]


def test_the_card_is_measured_once(tmp_path, deep: Job, short_of_memory, card, monkeypatch):
    measured = []
    monkeypatch.setattr(learnt, "probe", lambda device, *_, **__: measured.append(device) or DeviceProbe(card=card))
    short_of_memory.append(1)
    train(tmp_path, replace(deep, memory=LARGE), "short")
    assert len(plans(tmp_path, "short")) == 2
    assert measured == [CPU]


def test_a_model_that_cannot_be_loaded_is_loaded_leaner(tmp_path, deep: Job, plain, monkeypatch):
    losses, lora = plain
    loads = []
    prepare = run_plan.prepare

    def load(job, device, **options):
        loads.append(options["plan"])
        if len(loads) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        return prepare(job, device, **options)

    monkeypatch.setattr(run_plan, "prepare", load)
    found, other, _ = train(tmp_path, replace(deep, memory=LARGE), "short")
    assert found == losses
    assert same(lora, other)
    events = plans(tmp_path, "short")
    assert [event["plan"]["checkpointing"] for event in events] == [plan.checkpointing for plan in loads]
    assert "ran out while the model was loaded: the run goes on with" in events[1]["message"]
    assert events[1]["vram"] < events[0]["vram"]


def test_when_nothing_takes_less_the_run_ends_with_a_sentence(tmp_path, job: Job, short_of_memory):
    short_of_memory.extend([3] * 20)
    with pytest.raises(RunError, match=r"there is no plan that takes less .* the last checkpoint is kept"):
        train(tmp_path, job, "short")
    assert RunFolder(tmp_path / "runs" / "short").checkpoints()


def counted(monkeypatch, of_steps, of_others=0):
    """Give the device a counter of memory, as a GPU has one: bytes that steps take, and previews and validations."""

    class Counted:
        now = 0

        def peaks(self):
            return MemoryPeaks(Counted.now, 2 * Counted.now)

        def reset(self):
            Counted.now = 0

    def taking(owner, name, number):
        act = getattr(owner, name)

        def taken(*args, **options):
            Counted.now = max(Counted.now, number)
            return act(*args, **options)

        monkeypatch.setattr(owner, name, taken)

    monkeypatch.setattr(run_plan, "DeviceCounters", lambda _: Counted())
    taking(Trainer, "train_step", of_steps)
    for owner, name in ((previews, "sample_shots"), (previews, "load_video_encoder"), (validation, "_losses")):
        taking(owner, name, of_others)


def memory_learnt(tmp_path, planner, card):
    version = learnt.Learnt(CPU, tmp_path / "cache").version
    return read_correction(tmp_path / "cache", card, correction_kind(planner), version).memory


@pytest.mark.grid(2)
@pytest.mark.parametrize("sizes", ["one size", "several sizes"])
def test_previews_and_validations_teach_nothing_of_steps_and_are_not_shown_as_such(
    tmp_path, deep: Job, card, monkeypatch, sizes
):
    """However much they take, also before the first step, and decoded in the run's own process."""
    samples = deep.data.samples[:1] if sizes == "one size" else deep.data.samples
    held = replace(samples[0], name="held", held_out=True)
    every = {"one size": WARM_UP + NUM_MEASURED + 1, "several sizes": 1}[sizes]
    job = replace(
        deep,
        data=replace(deep.data, samples=(*samples, held)),
        loop=replace(deep.loop, steps=14, validate_every=1),
        previews=PreviewOptions(every=every, at_start=True, steps=6),
        preview_vae=str(tmp_path / "gone.safetensors"),
        memory=LARGE,
    )
    planner = planner_of(job, card)
    choice = planner.choose()
    exact = next(iter(choice.estimates.values())).exact_vram
    peak = exact + round(1.25 * (choice.vram - exact))
    counted(monkeypatch, peak, 10 * peak)
    train(tmp_path, job, "run")
    events = EventReader(tmp_path / "runs" / "run" / "events.jsonl").read()
    assert {"validation", "preview"} <= {event["event"] for event in events}
    steps = [event for event in events if event["event"] == "step"]
    assert {event["allocated_gib"] for event in steps} == {round(peak / 2**30, 6)}
    assert {event["reserved_gib"] for event in steps} == {round(2 * peak / 2**30, 6)}
    assert memory_learnt(tmp_path, planner, card) == pytest.approx(1.25, rel=1e-4)


def test_the_next_run_knows_what_this_one_took(tmp_path, deep: Job, card, monkeypatch):
    """With a counter of memory, as a GPU has one, that finds a quarter more than was predicted."""
    one_size = replace(deep.data, samples=deep.data.samples[:1])
    job = replace(deep, data=one_size, loop=replace(deep.loop, steps=12), memory=LARGE)
    planner = planner_of(job, card)
    choice = planner.choose()
    (found,) = choice.estimates.values()
    peak = found.exact_vram + round(1.25 * (found.vram - found.exact_vram))
    counted(monkeypatch, peak)
    train(tmp_path, job, "first")
    version = learnt.Learnt(CPU, tmp_path / "cache").version
    correction = read_correction(tmp_path / "cache", card, correction_kind(planner), version)
    assert correction.memory == pytest.approx(1.25, rel=1e-4)
    assert correction.time != 1.0
    train(tmp_path, job, "second")
    first, second = (plans(tmp_path, name)[0] for name in ("first", "second"))
    assert second["vram"] == pytest.approx(peak, rel=1e-4)
    assert second["seconds"] == pytest.approx(first["seconds"] * correction.time, abs=2.5e-4)  # of rounded ones
    monkeypatch.setattr(learnt, "version_of", lambda _: "another driver")
    train(tmp_path, job, "third")
    assert plans(tmp_path, "third")[0]["vram"] == first["vram"]


def test_the_next_run_does_not_meet_the_same_shortage(tmp_path, deep: Job, plain, short_of_memory):
    """Nor does one of another expert; one on other clips has not met it."""
    losses, _ = plain
    job = replace(deep, memory=LARGE)
    short_of_memory.append(2)
    train(tmp_path, job, "short")
    planned, changed = plans(tmp_path, "short")
    found, _, warnings = train(tmp_path, job, "again")
    assert found == losses
    assert warnings == []
    (second,) = plans(tmp_path, "again")
    assert second["vram"] <= changed["vram"] < planned["vram"]
    other = replace(job, data=replace(job.data, samples=job.data.samples[:1]))
    train(tmp_path, other, "other")
    assert plans(tmp_path, "other")[0]["plan"] == planned["plan"]


def test_a_shortage_is_forgotten_when_a_larger_plan_has_succeeded(tmp_path, deep: Job, short_of_memory):
    job = replace(deep, memory=LARGE)
    short_of_memory.append(2)
    train(tmp_path, job, "short")
    planned, _ = plans(tmp_path, "short")
    path = tmp_path / "cache" / "shortages-planner-cpu.json"
    assert '"share"' in path.read_text()
    larger = replace(job, memory=replace(LARGE, checkpointing=False))  # as the user wants it
    train(tmp_path, larger, "larger")
    assert plans(tmp_path, "larger")[0]["plan"] == planned["plan"]
    assert '"share"' not in path.read_text()
    train(tmp_path, job, "after")
    assert plans(tmp_path, "after")[0]["plan"] == planned["plan"]


def test_graphs_are_the_first_to_go(tmp_path, deep: Job, card):
    """They hold memory beside all else, and take a little time when they are gone."""
    events = EventWriter(tmp_path / "events.jsonl")
    plan = RunPlan(replace(deep, memory=LARGE), inspect(deep.model.path), CPU, events=events, scratch=tmp_path)
    planner = plan._planner
    plan._planner = replace(planner, task=replace(planner.task, graphs=True))
    graphed = plan._planner.describe(replace(planner.plan, cuda_graphs="auto", checkpointing=False))
    lower = plan.step_down(graphed, "vram")
    assert lower.plan == replace(graphed.plan, cuda_graphs="off")
    least = plan.step_down(lower, "vram")
    assert least.vram < lower.vram
    again = RunPlan(replace(deep, memory=LARGE), inspect(deep.model.path), CPU, events=events, scratch=tmp_path)
    assert not again._planner.met.graphs


def test_time_alone_is_learnt_where_memory_is_not_counted(tmp_path, deep: Job):
    train(tmp_path, replace(deep, loop=replace(deep.loop, steps=12), memory=LARGE), "run")
    (path,) = (tmp_path / "cache").glob("planner-*")
    assert {correction["memory"] for correction in json.loads(path.read_text())["corrections"].values()} == {1.0}


def test_options_without_effect_on_the_cpu_are_told(tmp_path, job: Job):
    job = replace(job, loop=replace(job.loop, steps=1))
    manual = MemoryOptions(plan="manual", budget_gb=1.0)
    assert train(tmp_path, replace(job, memory=manual), "a")[2] == [
        "budget_gb has no effect on the CPU with plan manual."
    ]
    told = train(tmp_path, replace(job, memory=MemoryOptions(stream_from="mapped")), "b")[2]
    assert told == ["stream_from has no effect on the CPU without budget_gb: no block is streamed."]
    found = replace(job, memory=MemoryOptions(stream_from="mapped", plan="manual")).warnings()
    assert [warning.split()[0] for warning in found] == ["stream_from"]


def test_a_system_that_does_not_tell_its_memory_trains_all_the_same(tmp_path, deep: Job, plain, monkeypatch):
    def refuse(*_, **__):
        raise OSError("The free memory of this system cannot be read: install psutil.")

    monkeypatch.setattr(learnt, "probe", refuse)
    found, _, warnings = train(tmp_path, replace(deep, memory=LARGE), "unknown")
    assert found == plain[0]
    assert len(warnings) == 1
    assert "install psutil. No plan can be chosen without" in warnings[0]
    assert plans(tmp_path, "unknown") == []


def test_batches_apart_are_planned_in_the_copies_that_the_objective_takes_too(tmp_path, deep: Job, monkeypatch):
    sample = replace(deep.data.samples[0], held_out=False)
    job = replace(
        deep,
        data=replace(deep.data, samples=(sample,)),
        loop=replace(deep.loop, gradient_accumulation=4),
        memory=replace(LARGE, join_batches="on"),
        regularizers=RegularizerOptions(blank_preservation=0.5, single_pass=True),
    )
    seen, choose = [], Planner.choose
    monkeypatch.setattr(Planner, "choose", lambda self: (seen.append(self), choose(self))[1])
    RunPlan(job, inspect(job.model.path), CPU, events=EventWriter(tmp_path / "events.jsonl"), scratch=tmp_path)
    assert [(planner.buckets[0].batch, planner.task.accumulation) for planner in seen] == [(8, 1), (2, 4)]


@pytest.mark.parametrize("join", ["off", "on"])
def test_steps_tell_the_sizes_that_the_plan_has_told(tmp_path, deep: Job, join):
    """Else the time that is left would be that of sizes which never come, and nothing would be learnt of their first steps."""
    job = replace(
        deep,
        data=replace(deep.data, samples=(replace(deep.data.samples[0], held_out=False),)),
        loop=replace(deep.loop, gradient_accumulation=4, steps=4),
        memory=replace(LARGE, join_batches=join),
        regularizers=RegularizerOptions(blank_preservation=0.5, single_pass=True),
    )
    train(tmp_path, job, "run")
    (told,) = plans(tmp_path, "run")
    steps = [e for e in EventReader(tmp_path / "runs" / "run" / "events.jsonl").read() if e["event"] == "step"]
    assert {str(step["tokens"]) for step in steps} == told["sizes"].keys()
    (costs,) = (tmp_path / "cache").glob("costs-*")
    (compiled,) = json.loads(costs.read_text())["compiled"]
    rows = {"off": 2, "on": 8}[join]
    assert f"; {rows * num_tokens(deep.data.samples[0].shape)}; " in compiled


def test_the_plan_that_is_not_chosen_is_the_jobs(tmp_path, job: Job):
    plan = RunPlan(job, inspect(job.model.path), CPU, events=EventWriter(tmp_path / "events.jsonl"), scratch=tmp_path)
    assert asdict(plan._descent.choice.plan) == asdict(plan_of(job, plan._decision))
    assert plan.callbacks() == []
    assert not list(tmp_path.glob("planner-*"))
