"""Plans that hold the weights of fp8_compute transposed, too: what they take, what they save, and when they are chosen."""

from dataclasses import replace

import pytest
from wan_train.core.plan.estimate import estimate, held_by
from wan_train.core.plan.plan import Bucket, Plan, Task, dense_params, transposed_bytes
from wan_train.core.plan.planner import Planner
from wan_train.core.plan.planning import with_plan
from wan_train.core.plan.sizes import Trained
from wan_train.core.plan.step_time import block_seconds
from wan_train.core.plan.words import changed, told
from wan_train.core.serial import from_dict, to_dict
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.wan.config import WanConfig
from wan_train.tests.core.plan.test_estimate import CARD

GIB = 2**30
PICTURE = Bucket((16, 1, 128, 128))
TASK = Task(sizes=WanConfig())
FAST = replace(CARD, matmul=6e14, matmul_fp8=1.1e15, bandwidth=4.2e12, free=130 * GIB, free_ram=200 * GIB)
AS_IT_IS = Plan(precision="fp8_compute", compile="kernels")
KEPT = replace(AS_IT_IS, keep_transposed=True)


def planner(task=TASK, plan=AS_IT_IS, card=FAST, bucket=PICTURE, **options):
    return Planner(task=task, buckets=[bucket], card=card, plan=plan, options=MemoryOptions(**options))


def test_they_take_a_byte_for_each_number_whose_layer_needs_it():
    sizes = TASK.sizes
    more = held_by(TASK, KEPT).vram - held_by(TASK, AS_IT_IS).vram
    assert more == sizes.num_layers * transposed_bytes(sizes) == 40 * (6 * 5120**2 + 2 * 5120 * 13824)
    # The one matrix in which each is transposed when it is needed is not there then.
    whole = estimate(TASK, PICTURE, KEPT, FAST).vram - estimate(TASK, PICTURE, AS_IT_IS, FAST).vram
    assert whole == more - sizes.dim * sizes.ffn_dim
    dora = replace(TASK, trained=Trained(adapter="dora"))  # which uses it for the text's layers
    assert estimate(dora, PICTURE, KEPT, FAST).vram - estimate(dora, PICTURE, AS_IT_IS, FAST).vram == more


def test_they_save_what_is_read_and_written_for_it():
    saved = block_seconds(TASK, PICTURE, AS_IT_IS, FAST).backward - block_seconds(TASK, PICTURE, KEPT, FAST).backward
    assert saved == pytest.approx(2 * dense_params(TASK.sizes) / FAST.bandwidth)


def test_they_are_chosen_where_there_is_room_and_time_is_won():
    choice = planner().choose()
    assert choice is not None
    assert choice.plan.keep_transposed
    assert choice.seconds < planner().describe(replace(choice.plan, keep_transposed=False), choice.kept).seconds


@pytest.mark.parametrize(
    "these",
    [
        pytest.param(planner(card=replace(FAST, free=22 * GIB)), id="no room"),
        pytest.param(planner(plan=replace(AS_IT_IS, precision="bf16")), id="bf16"),
        pytest.param(planner(plan=replace(AS_IT_IS, precision="fp8")), id="fp8 that is stored"),
        pytest.param(planner(plan=replace(AS_IT_IS, compile="off")), id="no kernels"),
        pytest.param(planner(card=replace(FAST, matmul_fp8=0.0)), id="a card that does not multiply in fp8"),
        pytest.param(planner(streamed_blocks=4), id="block swap"),
        pytest.param(planner(plan=replace(AS_IT_IS, shards=4)), id="a base spread over GPUs"),
        pytest.param(planner(replace(TASK, second_base="host")), id="two experts that take turns"),
        pytest.param(replace(planner(), alternate_every=10), id="another run that takes turns"),
        pytest.param(planner(replace(TASK, stored_block_bytes=10**9)), id="a GGUF file"),
        pytest.param(planner(bucket=Bucket((16, 21, 90, 160))), id="a step that they are nothing to"),
    ],
)
def test_else_they_are_not(these):
    choice = these.choose()
    assert choice is not None
    assert not choice.plan.keep_transposed


def test_after_a_shortage_they_are_given_up():
    these = planner()
    choice = these.choose()
    assert choice is not None
    plans = [choice.plan]
    while (choice := these.step_down(choice, "vram")) is not None:
        plans.append(choice.plan)
    assert plans[0].keep_transposed
    assert not plans[-1].keep_transposed


def test_a_plan_of_before_lacks_the_field():
    kept = to_dict(KEPT)
    assert from_dict(Plan, kept) == KEPT
    del kept["keep_transposed"]
    assert from_dict(Plan, kept) == AS_IT_IS


def test_words():
    assert "weights kept transposed too" in told(KEPT, 40)
    assert list(told(AS_IT_IS, 40)) == []
    assert changed(KEPT, AS_IT_IS) == "weights not kept transposed"


def test_a_job_that_takes_a_plans_options_has_none_for_it(job):
    assert with_plan(job, KEPT) == with_plan(job, AS_IT_IS)
