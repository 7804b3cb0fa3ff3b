"""A run over several ranks is the run of one: the same draws, losses and gradients; the same bits on all of them."""

from dataclasses import replace

import pytest
import torch
from wan_train.core.adapters.formats import LoraModule, write_lora
from wan_train.core.errors import ConfigError
from wan_train.core.parallel.world import ALONE, World
from wan_train.core.settings.ema import EmaOptions
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.settings.parallel import ParallelOptions
from wan_train.core.settings.previews import PreviewOptions
from wan_train.core.settings.regularizers import RegularizerOptions
from wan_train.core.train import previews
from wan_train.core.train.batches import Prefetcher
from wan_train.core.train.dealing import Dealing
from wan_train.core.train.requests import PREVIEW_FILE, SAVE_FILE
from wan_train.core.train.together import check_ranks, schedule_of
from wan_train.tests.core.train.helpers import make_sample, with_class
from wan_train.tests.core.train.team_runs import folder_of, lora, losses, places, run, spread, steps, told


@pytest.fixture
def many(job, tmp_path):
    """Six samples of three sizes, two of which count otherwise; batches of two, four a step."""
    shapes = [(16, 2, 4, 4), (16, 1, 4, 6), (16, 3, 4, 4)]
    samples = [make_sample(tmp_path, name, shape=shapes[n % 3]) for n, name in enumerate("abcdefg")]
    samples[1], samples[3] = replace(samples[1], loss_weight=0.25), replace(samples[3], loss_weight=3.0)
    job = replace(job, data=replace(job.data, samples=tuple(samples)))
    return spread(job, 4, batch_size=2, caption_dropout=0.2)


def relative(a, b):
    a, b = (torch.cat([torch.tensor(t, dtype=torch.float64).flatten() for t in each]) for each in (a, b))
    return ((a - b).norm() / b.norm()).item()


def assert_like_one(found, wanted):
    """Of each rank, against one process: first gradients, numbers of each step; and equal bits on all ranks."""
    gradients, reports, *_ = wanted
    for of_rank in found:
        assert relative(of_rank[0][0], gradients[0]) < 1e-6
        assert of_rank[0] == found[0][0]
        assert of_rank[2:] == found[0][2:]
        for (loss, norm, sigma, tokens, terms), expected in zip(of_rank[1], reports, strict=True):
            assert (sigma, tokens) == expected[2:4]
            assert loss == pytest.approx(expected[0], rel=1e-4)
            assert norm == pytest.approx(expected[1], rel=1e-3)
            assert terms == pytest.approx(expected[4], rel=1e-4)
            assert list(terms) == list(expected[4])
        assert of_rank[1][0][0] == reports[0][0]  # with the same weights, the loss is the same to the bit


@pytest.mark.parametrize("size", [2, 4])
def test_batches_of_different_sizes_and_weights(ranks, many, size):
    wanted = steps(ALONE, many, 3)
    assert len({loss for loss, *_ in wanted[1]}) == 3
    assert_like_one(ranks(size)(steps, many, 3), wanted)


@pytest.mark.grid(4)
@pytest.mark.parametrize(
    ("precision", "memory", "size"),
    [
        ("bf16", {"streamed_blocks": 2}, 2),
        ("fp16", {"checkpointing": False}, 2),
        ("fp8", {"streamed_blocks": 1, "stream_from": "mapped"}, 2),
        ("fp8_compute", {"streamed_blocks": 2, "split_blocks": True}, 2),
        ("int8", {"streamed_blocks": 2, "stream_from": "pageable", "offload_inputs": True}, 4),
        ("nf4", {"streamed_blocks": 1, "keep_attention": 1}, 2),
        ("int4_svd", {"streamed_blocks": 2, "ffn_pieces": 2}, 2),
        ("fp32", {"streamed_blocks": 2}, 4),
    ],
    ids=str,
)
def test_with_each_precision_and_blocks_that_are_swapped(ranks, many, tmp_path, precision, memory, size):
    job = replace(many, model=replace(many.model, precision=precision), memory=MemoryOptions(**memory))
    assert_like_one(ranks(size)(steps, job, 2, tmp_path / "ranks"), steps(ALONE, job, 2, tmp_path / "alone"))


@pytest.mark.grid(3)
@pytest.mark.parametrize(
    ("precision", "memory", "size"),
    [
        ("fp32", {}, 2),
        ("fp32", {"streamed_blocks": 1}, 4),
        ("fp8", {"streamed_blocks": 1, "offload_inputs": True}, 2),
        ("bf16", {}, 4),
        ("int8", {"keep_attention": 1}, 2),
        ("nf4", {}, 2),
    ],
    ids=str,
)
def test_with_a_base_that_lies_spread_over_the_ranks(ranks, many, tmp_path, precision, memory, size):
    """Each rank trains samples of its own by blocks of which it holds a share."""
    job = replace(many, model=replace(many.model, precision=precision), memory=MemoryOptions(**memory))
    sharded = replace(job, parallel=ParallelOptions(base="sharded"))
    assert_like_one(ranks(size)(steps, sharded, 2, tmp_path / "ranks"), steps(ALONE, job, 2, tmp_path / "alone"))


@pytest.mark.parametrize(("base", "context"), [("whole", 1), ("whole", 2), ("sharded", 1)])
def test_ranks_see_each_other_at_the_same_places(ranks, many, base, context):
    """Those that share clips, or the base, reach the same marks: who has fewer of them is behind."""
    job = replace(many, parallel=ParallelOptions(base=base, context=context))
    found = ranks(2, context=context)(places, job)
    for at_sum, after in found:
        assert (at_sum.host, at_sum.mark, at_sum.is_first) == ("own", "sum", True)
        assert (after.host, after.mark, after.reached) == ("elsewhere", "rest", after.queued)
    if base == "sharded" or context > 1:
        assert found[0] == found[1]


def test_three_batches_on_two_ranks(ranks, many):
    job = spread(many, 3)
    assert_like_one(ranks(2)(steps, job, 3), steps(ALONE, job, 3))


def test_regularizers_with_forwards_of_their_own(ranks, many, tmp_path):
    """Some samples have no class caption, so that batches take one forward more or less."""
    samples = [with_class(tmp_path, s) if n % 2 else s for n, s in enumerate(many.data.samples)]
    regularizers = RegularizerOptions(output_preservation=0.5, blank_preservation=0.25, max_weight_norm=0.05)
    job = replace(many, data=replace(many.data, samples=tuple(samples)), regularizers=regularizers)
    wanted = steps(ALONE, job, 3)
    assert any(len(terms) == 3 for *_, terms in wanted[1])
    found = ranks(2)(steps, job, 3)
    for *_, terms in found[0][1]:
        assert set(terms) <= {"flow", "output_preservation", "blank_preservation"}
    assert_like_one(found, wanted)


@pytest.mark.grid(3)
@pytest.mark.parametrize(
    "options",
    [
        {"output_preservation": 0.5, "preservation_target": 0.05},
        {"output_preservation": 0.5, "blank_preservation": 0.25, "single_pass": True},
        {"output_preservation": 0.5, "preservation_target": 0.05, "single_pass": True, "prior_preservation": True},
    ],
    ids=["adaptive", "one pass", "all"],
)
def test_regularizers_that_adapt_go_together_or_change_the_target(ranks, many, tmp_path, options):
    samples = [with_class(tmp_path, s) if n % 2 else s for n, s in enumerate(many.data.samples)]
    samples[0] = replace(samples[0], is_regularization=True)
    job = replace(many, data=replace(many.data, samples=tuple(samples)), regularizers=RegularizerOptions(**options))
    assert_like_one(ranks(2)(steps, job, 3), steps(ALONE, job, 3))


def test_a_step_without_class_captions_tells_no_such_term(ranks, many, tmp_path):
    samples = (with_class(tmp_path, many.data.samples[0]), *many.data.samples[1:])
    regularizers = RegularizerOptions(output_preservation=0.5)
    job = spread(replace(many, data=replace(many.data, samples=samples), regularizers=regularizers), 2, batch_size=1)
    wanted = steps(ALONE, job, 4)
    assert {bool(terms) for *_, terms in wanted[1]} == {True, False}
    assert_like_one(ranks(2)(steps, job, 4), wanted)


def test_the_average_of_the_weights_is_the_same_everywhere(ranks, many):
    job = replace(many, ema=EmaOptions(use=True, decay=0.9))
    found = ranks(2)(steps, job, 3)
    assert found[0][3] == found[1][3] != ""
    assert_like_one(found, steps(ALONE, job, 3))


def test_dropout_of_the_adapter_is_that_of_one_process(ranks, many):
    job = replace(many, adapter=replace(many.adapter, dropout=0.3))
    assert_like_one(ranks(2)(steps, job, 2), steps(ALONE, job, 2))


@pytest.mark.grid(4)
@pytest.mark.parametrize("name", ["adamw8bit", "prodigy", "muon", "adafactor"])
def test_optimizers_that_look_at_all_gradients(ranks, many, name):
    if name in ("adamw8bit", "prodigy"):
        pytest.importorskip({"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt"}[name])
    job = replace(many, optimizer=replace(many.optimizer, name=name))
    first, second = ranks(2)(steps, job, 3)
    assert first == second


def test_a_rank_reads_its_own_batches_alone(many):
    """Two ranks between them read every batch of three steps once, each in the order in which it trains them."""
    read = []
    for rank in range(2):
        dealing = Dealing(schedule_of(many), 4, rank=rank, ranks=2, cost=lambda tokens, count: tokens * count)
        wanted = [index for step in range(3) for index in dealing.of(step).indices]
        seen = []
        prefetcher = Prefetcher(lambda index, seen=seen: seen.append(index) or index, wanted[0], ahead=1,
                                following=dealing.following)  # fmt: skip
        assert [prefetcher.get(index) for index in wanted] == wanted
        prefetcher._pool.shutdown(wait=True)
        assert seen[: len(wanted)] == wanted
        read += wanted
    assert sorted(read) == list(range(12))


def held_out(job):
    *rest, last, before = job.data.samples
    samples = (*rest, replace(last, held_out=True), replace(before, held_out=True))
    return replace(job, data=replace(job.data, samples=samples))


@pytest.fixture
def whole(many):
    """A run with everything that is written: held-out loss, previews, checkpoints, an average."""
    job = held_out(spread(many, 4, steps=4, checkpoint_every=2, validate_every=2, keep_last=9))
    return replace(job, previews=PreviewOptions(every=2, steps=6), ema=EmaOptions(use=True, decay=0.9))


@pytest.mark.grid(2)
@pytest.mark.parametrize("size", [2, 4])
def test_a_run_writes_each_thing_once(ranks, whole, tmp_path, size):
    alone, together = folder_of(tmp_path, "alone", whole), folder_of(tmp_path, "together", whole)
    run(ALONE, alone.path)
    found = ranks(size)(run, together.path)
    assert {ended for ended, _ in found} == {"finished"}
    assert len({weights for _, weights in found}) == 1
    for kind in ("start", "step", "validation", "preview", "checkpoint", "warning", "status"):
        assert len(told(together, kind)) == len(told(alone, kind)), kind
    for ours, theirs in zip(told(together, "validation"), told(alone, "validation"), strict=True):
        assert ours["by_sigma"] == pytest.approx(theirs["by_sigma"], rel=1e-4)
    # Before the first step the weights are the same, and so is the loss to the bit, in whatever order it was computed.
    assert told(together, "validation")[0]["by_sigma"] == told(alone, "validation")[0]["by_sigma"]
    assert list(losses(together).values()) == pytest.approx(list(losses(alone).values()), rel=1e-3)
    assert sorted(p.relative_to(together.path) for p in together.path.rglob("*") if p.is_file()) == sorted(
        p.relative_to(alone.path) for p in alone.path.rglob("*") if p.is_file()
    )


def test_a_run_goes_on_with_other_numbers_of_gpus(ranks, whole, tmp_path):
    """1, then 2, then 4, then 1: the curve of one; and where the number stays, the same bits as without a stop."""
    alone, moved = folder_of(tmp_path, "alone", whole), folder_of(tmp_path, "moved", whole)
    run(ALONE, alone.path)
    assert run(ALONE, moved.path, 1)[0] == "stopped"
    assert {ended for ended, _ in ranks(2)(run, moved.path, 2)} == {"stopped"}
    assert {ended for ended, _ in ranks(4)(run, moved.path, 3)} == {"stopped"}
    assert run(ALONE, moved.path)[0] == "finished"
    assert list(losses(moved).values()) == pytest.approx(list(losses(alone).values()), rel=1e-3)
    ours, theirs = lora(moved, 4), lora(alone, 4)
    assert all(torch.allclose(ours[key], theirs[key], rtol=1e-2, atol=1e-4) for key in theirs)
    straight, stopped = folder_of(tmp_path, "straight", whole), folder_of(tmp_path, "stopped", whole)
    ranks(2)(run, straight.path)
    ranks(2)(run, stopped.path, 1)
    ranks(2)(run, stopped.path)
    assert losses(straight) == losses(stopped)
    ours, theirs = lora(stopped, 4), lora(straight, 4)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_what_is_asked_in_files_is_done_once(ranks, many, tmp_path):
    folder = folder_of(tmp_path, "asked", spread(many, 2, steps=3, checkpoint_every=100))
    for name in (SAVE_FILE, PREVIEW_FILE):
        (folder.path / name).touch()
    assert {ended for ended, _ in ranks(2)(run, folder.path)} == {"finished"}
    assert [event["step"] for event in told(folder, "checkpoint")] == [1, 3]
    assert [event["step"] for event in told(folder, "preview")] == [1]
    assert not any((folder.path / name).exists() for name in (SAVE_FILE, PREVIEW_FILE))


def run_without_a_file(world, path):
    """A run whose second rank can't open the LoRA of previews."""
    open_own = previews.open_own

    def opened(*args):
        if world.rank == 1:
            raise OSError("the disk is not there")
        return open_own(*args)

    previews.open_own = opened
    try:
        return run(world, path)
    finally:
        previews.open_own = open_own


def test_what_one_rank_cannot_open_is_opened_by_none_that_run_the_model_with_it(ranks, many, deep_model, tmp_path):
    """With the base spread over them, one would wait in vain for the others' blocks."""
    file = tmp_path / "any.safetensors"
    write_lora(
        file,
        {"blocks.0.self_attn.q": LoraModule(down=torch.ones(4, 32), up=torch.ones(32, 4), alpha=4.0)},
        metadata={},
        dtype=torch.float32,
    )
    job = replace(
        spread(many, 2, steps=2),
        stage="single",
        model=deep_model,
        timesteps=replace(many.timesteps, sigma_min=0.0, sigma_max=1.0),
        parallel=ParallelOptions(base="sharded"),
        previews=PreviewOptions(every=1, steps=2, cfg=1.0, lora=str(file)),
    )
    folder = folder_of(tmp_path, "run", job)
    assert {ended for ended, _ in ranks(2)(run_without_a_file, folder.path)} == {"finished"}
    assert [event["step"] for event in told(folder, "preview")] == [1, 2]
    assert any("without preview_lora: the disk is not there" in event["message"] for event in told(folder, "warning"))


def test_a_step_that_does_not_go_round_is_refused(ranks, many, tmp_path):
    check_ranks(spread(many, 1), ALONE, is_sharded=False)
    with pytest.raises(ConfigError, match="1 batch, and there are 2 GPUs"):
        check_ranks(spread(many, 1), World(size=2), is_sharded=False)
    check_ranks(spread(many, 1), World(size=2, context=2), is_sharded=False)  # both train the one
    job = replace(many, regularizers=RegularizerOptions(output_preservation=1.0))
    with pytest.raises(ConfigError, match="needs a class word for every caption, and a has none"):
        check_ranks(job, World(size=2), is_sharded=True)
    first, *rest = many.data.samples
    data = replace(many.data, samples=(replace(first, is_regularization=True), *rest))
    job = replace(many, data=data, regularizers=RegularizerOptions(prior_preservation=True))
    with pytest.raises(ConfigError, match="prior_preservation only regularization sets have one more"):
        check_ranks(job, World(size=2), is_sharded=True)
    check_ranks(job, World(size=2), is_sharded=False)
