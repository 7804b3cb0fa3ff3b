"""One LoRA through both experts: what a plain loop does that alternates them on one set of weights, however they are held."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from wan_train.core.adapters.setup import adapter_state, add_adapter
from wan_train.core.errors import ConfigError
from wan_train.core.flow.objective import add_noise, sample_noise
from wan_train.core.flow.sigmas import sample_sigmas
from wan_train.core.plan.card import measure_card
from wan_train.core.plan.decision import decide
from wan_train.core.plan.estimate import parked_bytes
from wan_train.core.plan.planner import MARGIN, MARGIN_BYTES
from wan_train.core.plan.planning import make_planner
from wan_train.core.settings.job import ExpertTurns, Job, ModelSpec, job_from_json, job_to_json
from wan_train.core.settings.loop import LoopOptions
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.settings.previews import PreviewOptions
from wan_train.core.settings.regularizers import RegularizerOptions
from wan_train.core.settings.timesteps import TimestepOptions
from wan_train.core.train.alternate import RunStoppedError
from wan_train.core.train.batches import BatchSchedule
from wan_train.core.train.events import EventReader, EventWriter
from wan_train.core.train.loop import Trainer
from wan_train.core.train.run import run_job
from wan_train.core.train.run_folder import RunFolder
from wan_train.core.train.start import check_start
from wan_train.core.wan.checkpoint import inspect
from wan_train.core.wan.loading import load_transformer
from wan_train.tests.core.train.helpers import SIZE, make_sample
from wan_train.tools.miniature import dit_metadata, wan_dit

CPU = torch.device("cpu")
BOUNDARY = 0.875


@pytest.fixture(scope="module")
def low_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("low") / "mini_low.safetensors"
    save_file(wan_dit(SIZE, seed=1), path, metadata=dit_metadata(SIZE))
    return path


@pytest.fixture
def shared(job: Job, low_path) -> Job:
    return replace(
        job,
        stage="both",
        timesteps=TimestepOptions(),
        other_expert=ModelSpec(path=str(low_path), identity=inspect(low_path).identity),
        turns=ExpertTurns(every=2, boundary=BOUNDARY),
        loop=LoopOptions(steps=7, checkpoint_every=3, keep_last=3, caption_dropout=0.0),
    )


def begin(tmp_path, job, name):
    folder = RunFolder(tmp_path / "runs" / name)
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.write_job(job)
    return folder


def train(folder, stop=lambda: False):
    """Losses by step, the LoRA, and the events."""
    lora = run_job(folder, EventWriter(folder.events_path), CPU, stop)
    events = EventReader(folder.events_path).read()
    losses = {event["step"]: event["loss"] for event in events if event["event"] == "step"}
    return losses, load_file(lora), events


def same(lora, other):
    return lora.keys() == other.keys() and all(torch.equal(lora[name], other[name]) for name in lora)


def warnings(events):
    return [event["message"] for event in events if event["event"] == "warning"]


def plain_loop(job: Job):
    """The paper's loop, written out: two whole models, one set of LoRA weights, AdamW; losses and the LoRA."""
    models = []
    for spec in (job.model, job.other_expert):
        model = load_transformer(inspect(spec.path), dtype=torch.float32, device=lambda _: CPU)
        models.append((model, dict(add_adapter(model, job.adapter, seed=job.loop.seed))))
    (_, weights), (_, also) = models
    for name, parameter in also.items():  # one tensor for both
        parameter.data = weights[name].data
    optimizer = torch.optim.AdamW(
        weights.values(), lr=job.optimizer.learning_rate, weight_decay=job.optimizer.weight_decay
    )
    schedule, losses = BatchSchedule.of(job.data, job.loop), []
    for step in range(job.loop.steps):
        is_low = step // job.turns.every % 2 == 1
        model, parameters = models[is_low]
        window = (0.0, BOUNDARY) if is_low else (BOUNDARY, 1.0)
        levels = replace(job.timesteps, sigma_min=window[0], sigma_max=window[1])
        batch = schedule.load(step)
        sigmas = sample_sigmas(levels, seed=job.loop.seed, first_draw=step, count=1, shape=batch.latents.shape)
        assert window[0] <= sigmas.item() <= window[1]
        noise = sample_noise(batch.latents[0].shape, seed=job.loop.seed, draw=step)[None]
        velocity = model(add_noise(batch.latents, noise, sigmas), 1000 * sigmas, batch.context)
        loss = (velocity - (noise - batch.latents)).square().mean()
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        for parameter, gradient in zip(weights.values(), gradients, strict=True):
            parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_(weights.values(), job.optimizer.max_grad_norm)
        optimizer.step()
        losses.append(loss.item())
    return losses, adapter_state(models[0][0])


def test_it_is_the_plain_loop_over_two_models_with_one_lora(tmp_path, shared):
    wanted, weights = plain_loop(shared)
    losses, lora, events = train(begin(tmp_path, shared, "both"))
    assert warnings(events) == []
    assert list(losses.values()) == pytest.approx(wanted, rel=1e-5)
    assert lora.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.allclose(lora[name], tensor, rtol=1e-4, atol=1e-7), name


def tight(job, blocks=None):
    """Options with room for one model, but not for a second one on the device."""
    pins = {} if blocks is None else {"streamed_blocks": blocks, "stream_from": "pageable"}
    job = replace(job, memory=MemoryOptions(budget_gb=8.0, **pins))
    planner = make_planner(job, decide(job, inspect(job.model.path), CPU), measure_card(CPU))
    least = planner.leanest()
    needed = least.vram + parked_bytes(planner.task, least.plan) / 2
    return replace(job.memory, budget_gb=((needed + MARGIN_BYTES) / (1 - MARGIN) + planner.card.overhead) / 2**30)


@pytest.fixture
def plainly(tmp_path, shared):
    losses, lora, _ = train(begin(tmp_path, shared, "plainly"))
    return losses, lora


@pytest.mark.grid(3)
@pytest.mark.parametrize("blocks", [None, 1, 2])
def test_one_expert_may_wait_in_main_memory_and_blocks_be_swapped(tmp_path, shared, plainly, blocks):
    """The weights are written over where they lie, and swapped blocks change places: to the bit the same."""
    job = replace(shared, memory=tight(shared, blocks))
    losses, lora, events = train(begin(tmp_path, job, "tight"))
    assert (losses, same(lora, plainly[1])) == (plainly[0], True)
    assert warnings(events) == []
    (plan,) = [event for event in events if event["event"] == "plan"]
    assert "switching every 2 steps, " in plan["message"]
    assert "weights on the GPU" not in plan["message"]


def test_both_stay_on_the_device_where_they_fit(tmp_path, shared, plainly):
    job = replace(shared, memory=MemoryOptions(budget_gb=8.0))
    losses, lora, events = train(begin(tmp_path, job, "roomy"))
    assert (losses, same(lora, plainly[1])) == (plainly[0], True)
    (plan,) = [event for event in events if event["event"] == "plan"]
    assert "switching every 2 steps, with both experts' weights on the GPU" in plan["message"]


@pytest.mark.grid(3)
@pytest.mark.parametrize("precision", ["int8", "nf4", "fp8"])
def test_quantized_experts_take_turns_too(tmp_path, shared, precision):
    job = replace(shared, model=replace(shared.model, precision=precision), loop=replace(shared.loop, steps=5))
    job = replace(job, other_expert=replace(job.other_expert, precision=precision))
    losses, lora, _ = train(begin(tmp_path, job, "plain"))
    again = replace(job, memory=tight(job, 1))
    other_losses, other_lora, _ = train(begin(tmp_path, again, "swapped"))
    assert (losses, same(lora, other_lora)) == (other_losses, True)


def test_a_leaner_plan_in_the_middle_keeps_both_experts(tmp_path, shared, plainly, monkeypatch):
    """Memory runs out in the low noise expert's turn: blocks that lay on the device are swapped from then on."""
    step, failing = Trainer.train_step, [3]

    def short(self):
        if self.step in failing:
            failing.remove(self.step)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        return step(self)

    monkeypatch.setattr(Trainer, "train_step", short)
    losses, lora, events = train(begin(tmp_path, replace(shared, memory=MemoryOptions(budget_gb=8.0)), "short"))
    assert (losses, same(lora, plainly[1])) == (plainly[0], True)
    plans = [event for event in events if event["event"] == "plan"]
    assert len(plans) == 2
    assert plans[1]["vram"] < plans[0]["vram"]


@pytest.mark.grid(2)
@pytest.mark.parametrize("stop_at", [1, 2, 3, 5])
def test_a_run_that_was_stopped_is_one_that_was_not(tmp_path, shared, plainly, stop_at):
    """In the middle of a turn, and between two."""
    folder = begin(tmp_path, shared, "stopped")
    count = []

    def stop():
        done = [e for e in EventReader(folder.events_path).read() if e["event"] == "step"]
        return len(done) >= stop_at and not count

    with pytest.raises(RunStoppedError):
        train(folder, stop)
    count.append(1)
    losses, lora, _ = train(folder)
    assert (losses, same(lora, plainly[1])) == (plainly[0], True)


def test_the_file_says_through_which_experts_it_was_trained(tmp_path, shared):
    job = replace(shared, loop=replace(shared.loop, steps=1))
    path = run_job(
        begin(tmp_path, job, "named"), EventWriter(tmp_path / "runs" / "named" / "events.jsonl"), CPU, lambda: False
    )
    assert path.name == "test.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["wantrain.experts"] == "high,low"
    assert metadata["modelspec.timestep_range"] == "0,1000"
    assert metadata["modelspec.architecture"] == "wan2.2-t2v-a14b/lora"
    assert json.loads(metadata["wantrain.job"])["turns"] == {"every": 2, "boundary": BOUNDARY}


def test_previews_and_validation_go_through_both_experts_with_the_one_lora(tmp_path, shared, plainly, monkeypatch):
    """Each at its own noise levels; the training is the same as without."""
    held = make_sample(tmp_path, "held", held_out=True)
    data = replace(shared.data, samples=(*shared.data.samples, held))
    previews = PreviewOptions(every=3, steps=4, cfg=1.0)
    job = replace(shared, data=data, previews=previews, loop=replace(shared.loop, validate_every=3))
    used, asked, current = [], [], []
    forward = Trainer.loss_at

    def loss_at(self, batch, noise, sigmas):
        asked.append((current[-1], sigmas.item()))
        return forward(self, batch, noise, sigmas)

    from wan_train.core.train import run_plan

    use = run_plan.RunPlan.use_expert

    def watched(self, expert):
        current.append(expert)
        used.append(expert)
        use(self, expert)

    monkeypatch.setattr(Trainer, "loss_at", loss_at)
    monkeypatch.setattr(run_plan.RunPlan, "use_expert", watched)
    losses, lora, events = train(begin(tmp_path, job, "looked"))
    assert (losses, same(lora, plainly[1])) == (plainly[0], True)
    found = {expert: [sigma for which, sigma in asked if which == expert] for expert in ("high", "low")}
    assert min(found["high"]) > BOUNDARY > max(found["low"])
    assert len(found["high"]) == len(found["low"])
    told = [event["message"] for event in events if event["event"] == "status"]
    assert "step 3: sampling a preview, through both experts" in told
    assert len([event for event in events if event["event"] == "preview"]) == 3  # after 3, 6 and 7


def test_a_preview_is_that_of_two_models_with_the_lora_on_each(tmp_path, shared):
    """The latents that the run keeps, against the sampler over two whole models."""
    from wan_train.core.adapters.setup import load_adapter
    from wan_train.core.sample.previews import preview_shots
    from wan_train.core.sample.sampler import initial_noise, sample
    from wan_train.core.train.batches import load_context
    from wan_train.core.train.preview_folder import PreviewFolder

    job = replace(shared, previews=PreviewOptions(every=3, steps=4, cfg=1.0), loop=replace(shared.loop, steps=3))
    folder = begin(tmp_path, job, "seen")
    _, lora, _ = train(folder)
    ((_, found),) = PreviewFolder.of(folder).read_all(3)
    models = []
    for spec in (job.model, job.other_expert):
        model = load_transformer(inspect(spec.path), dtype=torch.float32, device=lambda _: CPU)
        add_adapter(model, job.adapter, seed=0)
        load_adapter(model, lora)
        models.append(model.eval())
    (shot,) = preview_shots(job, 3)
    noise, context = initial_noise((1, *shot.shape), shot.seed), load_context(shot.text_path, "it")[None]
    with torch.no_grad():
        wanted = sample(models[0], models[1], noise, context, None, shot.sampling, None, None)
        alone = sample(models[0], None, noise, context, None, shot.sampling, None, None)
    assert torch.allclose(found, wanted[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, alone[0], rtol=1e-2, atol=1e-2)


def test_strata_fill_each_experts_window(shared):
    """Counted within an expert's own draws: by all draws, each expert would have every other cell alone."""
    job = replace(shared, timesteps=TimestepOptions(strata=2), turns=ExpertTurns(every=1, boundary=0.5))
    schedule = BatchSchedule.of(job.data, job.loop, turn=1)
    assert [schedule.own_draws_before(index) for index in range(7)] == [0, 0, 1, 1, 2, 2, 3]
    longer = BatchSchedule.of(job.data, job.loop, turn=3)
    assert [longer.own_draws_before(index) for index in (0, 2, 3, 5, 6, 8, 9, 13)] == [0, 2, 0, 2, 3, 5, 3, 7]


def test_what_decides_the_weights_makes_another_run(shared, low_path):
    assert replace(shared, turns=replace(shared.turns, every=3)).key != shared.key
    assert replace(shared, turns=replace(shared.turns, boundary=0.9)).key != shared.key
    assert replace(shared, other_expert=replace(shared.other_expert, identity="x")).key != shared.key
    assert replace(shared, other_expert=replace(shared.other_expert, path="elsewhere")).key == shared.key
    assert job_from_json(job_to_json(shared)) == shared


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda j: replace(j, adapter=replace(j.adapter, kind="dora")),
            "shared_lora does not go with the adapter dora",
        ),
        (lambda j: replace(j, adapter=replace(j.adapter, merge_into_base="x.safetensors")), "merge_into_base"),
        (lambda j: replace(j, model=replace(j.model, precision="ara")), "precision ara"),
    ],
)
def test_what_cant_be_is_refused_before_anything_is_read(shared, change, sentence):
    with pytest.raises(ConfigError, match=sentence):
        check_start(change(shared), inspect(shared.model.path))


def test_a_job_without_its_second_expert_is_refused(shared):
    for gone in ({"other_expert": None}, {"turns": None}):
        with pytest.raises(ConfigError, match="other_expert, the low noise expert"):
            replace(shared, **gone)


def test_files_of_two_formats_are_refused(tmp_path, shared):
    path = tmp_path / "bf16.safetensors"
    save_file({n: t.bfloat16() for n, t in wan_dit(SIZE, seed=1).items()}, path, metadata=dit_metadata(SIZE))
    job = replace(shared, other_expert=ModelSpec(path=str(path), identity=inspect(path).identity))
    with pytest.raises(ConfigError, match=r"stored as fp32 and bf16\.safetensors as bf16"):
        check_start(job, inspect(job.model.path))


@pytest.mark.grid(5)
@pytest.mark.parametrize("kind", ["lora", "loha", "lokr", "oft", "tlora"])
def test_every_other_adapter_goes_through_both(tmp_path, shared, kind):
    job = replace(shared, adapter=replace(shared.adapter, kind=kind), loop=replace(shared.loop, steps=3))
    losses, lora, _ = train(begin(tmp_path, job, kind))
    swapped_losses, swapped_lora, _ = train(begin(tmp_path, replace(job, memory=tight(job, 1)), f"{kind} swapped"))
    assert (losses, same(lora, swapped_lora)) == (swapped_losses, True)


def test_what_asks_the_plain_model_asks_the_expert_whose_turn_it_is(tmp_path, shared):
    """Blank-prompt preservation: the base's own word is that of the present expert."""
    options = RegularizerOptions(blank_preservation=0.5)
    losses, _, _ = train(begin(tmp_path, replace(shared, regularizers=options), "blank"))
    assert len(losses) == 7
