"""TREAD: tokens that go past blocks, drawn by seed, step and sample; the same however the model is held."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from wan_train.core.errors import ConfigError
from wan_train.core.memory.graphs import Graphs
from wan_train.core.plan.decision import decide
from wan_train.core.plan.estimate import estimate
from wan_train.core.plan.plan import Bucket, Plan, Task
from wan_train.core.plan.planning import make_planner
from wan_train.core.plan.spread import check_whole_clips
from wan_train.core.routes import Route
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.settings.tread import TreadOptions
from wan_train.core.train.batches import make_draws
from wan_train.core.train.validation import validation_loss
from wan_train.core.wan.checkpoint import inspect
from wan_train.tests.core.memory.helpers import CPU
from wan_train.tests.core.memory.test_graphs import Recorder
from wan_train.tests.core.objective.test_objective import trained
from wan_train.tests.core.objective.test_regularizers import stepped
from wan_train.tests.core.plan.test_estimate import CARD, T2V_14B
from wan_train.tests.core.train.helpers import SIZE, make_sample, make_trainer
from wan_train.tools.miniature import dit_metadata, wan_dit

DEEP = replace(SIZE, num_layers=4)


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    path = tmp_path_factory.mktemp("deep") / "deep.safetensors"
    save_file(wan_dit(DEEP, seed=0), path, metadata=dit_metadata(DEEP))
    return path


@pytest.fixture
def job(job, deep, tmp_path):
    """Batches of two samples, four blocks, of which the second and third see half of the tokens."""
    samples = tuple(make_sample(tmp_path, name, shape=(16, 3, 4, 8)) for name in "ab")
    return replace(
        job,
        model=replace(job.model, path=str(deep), identity=inspect(deep).identity),
        data=replace(job.data, samples=samples),
        loop=replace(job.loop, batch_size=2, caption_dropout=0.0),
        optimizer=replace(job.optimizer, max_grad_norm=0.0),
        tread=TreadOptions(routes="1 to -2: 0.5"),
    )


def seen_by_blocks(trainer):
    """Tokens of x in each block of a step."""
    found = [[] for _ in trainer.model.blocks]
    for block, seen in zip(trainer.model.blocks, found, strict=True):
        part = block.run_part

        def watched(name, x, *others, part=part, seen=seen):
            seen.append(x.shape[1])
            return part(name, x, *others)

        block.run_part = watched
    return found


def test_blocks_of_a_route_see_fewer_tokens_in_training_alone(job):
    held_out = replace(job.data.samples[0], held_out=True)
    job = replace(job, data=replace(job.data, samples=(*job.data.samples, held_out)))
    trainer = make_trainer(job)
    found = seen_by_blocks(trainer)
    trainer.train_step().read()
    assert [set(seen) for seen in found] == [{24}, {12}, {12}, {24}]
    for seen in found:
        seen.clear()
    validation_loss(trainer)
    assert [set(seen) for seen in found] == [{24}] * 4


def test_tokens_are_drawn_by_seed_step_and_sample(job):
    batch = make_trainer(job).batches.get(0)
    first, again, later = (make_draws(job, batch, index).kept_tokens for index in (0, 0, 1))
    assert torch.equal(first, again)
    assert first.shape == (2, 12)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, later)
    other = replace(job, loop=replace(job.loop, seed=job.loop.seed + 1))
    assert not torch.equal(first, make_draws(other, batch, 0).kept_tokens)
    drawn = torch.cat([make_draws(job, batch, index).kept_tokens.flatten() for index in range(200)])
    shares = torch.bincount(drawn, minlength=24) / 400
    assert shares.min() > 0.4
    assert shares.max() < 0.6


def test_where_frames_have_noise_levels_of_their_own_each_keeps_as_many(job):
    job = replace(job, data=replace(job.data, conditioning="first frame"), tread=TreadOptions(routes="1 to 2: 0.25"))
    assert job.data.gives_first_frame
    trainer = trained(make_trainer(replace(job, data=replace(job.data, conditioning="none"))))
    kept = make_draws(job, trainer.batches.get(0), 0).kept_tokens  # 8 tokens a frame
    assert kept.shape == (2, 18)
    assert all(torch.bincount(row // 8).tolist() == [6, 6, 6] for row in kept)


@pytest.mark.grid(2)
@pytest.mark.parametrize(
    ("precision", "memory"),
    [
        ("fp32", {"streamed_blocks": 2, "offload_inputs": True}),
        ("fp32", {"streamed_blocks": 1, "stream_from": "pageable", "split_blocks": True}),
        ("fp32", {"keep_attention": 1, "ffn_pieces": 2}),
        ("fp32", {"checkpointing": False}),
        ("int8", {"streamed_blocks": 2}),
        ("fp8", {"checkpointing": False}),
    ],
    ids=str,
)
def test_gradients_do_not_depend_on_how_the_model_is_held(job, precision, memory):
    job = replace(job, model=replace(job.model, precision=precision))
    plain = stepped(trained(make_trainer(job)))
    held = stepped(trained(make_trainer(replace(job, memory=MemoryOptions(plan="manual", **memory)))))
    assert held[0].loss == pytest.approx(plain[0].loss, rel=1e-5)
    for one, other in zip(held[1], plain[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_recorded_forwards_take_the_tokens_of_their_step(job):
    """CUDA graphs with the recorder of the CPU, which repeats what it was given."""
    plain, graphed = trained(make_trainer(job)), trained(make_trainer(job))
    recorder, model = Recorder(), graphed.model
    vars(model)["forward"] = Graphs(
        type(model).forward.__get__(model), graphed.parameters, tell=pytest.fail, record=recorder
    )
    for _ in range(5):
        assert plain.train_step().read().loss == pytest.approx(graphed.train_step().read().loss, rel=1e-5)
    assert recorder.acts == 2  # a forward and a backward
    for one, other in zip(plain.parameters, graphed.parameters, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_route_that_the_model_has_not_is_refused_before_it_is_read(job):
    with pytest.raises(ConfigError, match="of a model with 4 blocks"):
        make_trainer(replace(job, tread=TreadOptions(routes="1 to 9: 0.5")))


def test_gpus_do_not_share_clips_then(job):
    check_whole_clips(job, 1)
    with pytest.raises(ConfigError, match="context_parallel is 2, but tread_routes"):
        check_whole_clips(job, 2)


def test_the_planner_counts_fewer_tokens(job):
    task = make_planner(job, decide(job, inspect(job.model.path), CPU), CARD).task
    assert task.seen == ((1, 1.0), (2, 0.5), (1, 1.0))
    plain, bucket, plan = Task(sizes=T2V_14B), Bucket((16, 21, 60, 104)), Plan(streamed_blocks=0)
    routed = replace(plain, seen=((4, 1.0), (36, 0.5)))
    one, other = (estimate(each, bucket, plan, CARD) for each in (plain, routed))
    assert 0.4 * one.seconds < other.seconds < 0.7 * one.seconds
    assert other.vram < one.vram
    assert estimate(replace(plain, seen=((40, 1.0),)), bucket, plan, CARD) == one


def test_the_route_of_the_whole_model_is_kept_when_it_is_copied(job):
    assert make_trainer(job).model.routes == (Route(1, 2, 0.5),)
