"""With `deterministic` a run on a GPU that was stopped and resumed has the bits of one that was not, in every precision.

The model is wide enough, and the clip long enough, that sums of many parts are taken by many blocks of the GPU at once.
"""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from wan_train.core.memory.precision import needed_by_precision, needs_adapter
from wan_train.core.packages import package_problems
from wan_train.core.settings.job import Job, ModelSpec
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.settings.precision import PRECISIONS
from wan_train.core.settings.tread import TreadOptions
from wan_train.core.train.kept_plan import read_kept_plan
from wan_train.core.wan.checkpoint import inspect
from wan_train.tests.core.launch.deterministic_runs import assert_same, bits, in_parts, losses, warnings, whole
from wan_train.tests.core.train.helpers import SIZE, make_sample
from wan_train.tools.miniature import DiTSize, dit_metadata, wan_dit

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

MODEL = DiTSize(dim=768, ffn_dim=3072, num_heads=6, num_layers=4, text_dim=SIZE.text_dim)
ON = MemoryOptions(deterministic=True)


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    path = tmp_path_factory.mktemp("wide") / "wide.safetensors"
    save_file(wan_dit(MODEL, seed=0), path, metadata=dit_metadata(MODEL))
    return ModelSpec(path=str(path), identity=inspect(path).identity, label="wan2.1-t2v-1.3b", precision="bf16")


@pytest.fixture
def wide(tmp_path, job: Job, spec) -> Job:
    """A clip of 3510 tokens and a picture of 1024."""
    samples = (make_sample(tmp_path, "long", shape=(16, 9, 30, 52)), make_sample(tmp_path, "p", shape=(16, 1, 64, 64)))
    return replace(job, model=spec, data=replace(job.data, samples=samples), device="cuda:0", memory=ON)


def check(tmp_path, job):
    one, other = whole(tmp_path, job), in_parts(tmp_path, job)
    assert losses(one) == losses(other)
    assert_same(bits(one), bits(other))
    assert warnings(one) == list(dict.fromkeys(warnings(other)))
    assert not [sentence for sentence in warnings(other) if sentence.startswith("deterministic")]
    assert read_kept_plan(one.path) == read_kept_plan(other.path)
    return read_kept_plan(one.path)


@pytest.mark.parametrize("precision", [name for name in PRECISIONS if name != "auto" and not needs_adapter(name)])
def test_in_every_precision(tmp_path, wide, precision):
    if package_problems(needed_by_precision(precision)):
        pytest.skip("a package is missing")
    kept = check(tmp_path, replace(wide, model=replace(wide.model, precision=precision)))
    assert kept.attention not in ("", "cudnn")


@pytest.mark.parametrize(
    "options",
    [
        {"attention": "flash"},
        {"attention": "efficient"},
        {"attention": "default"},
        {"compile": "off"},
        {"streamed_blocks": 3, "offload_inputs": True},
        {"plan": "manual", "keep_linears": 2},
    ],
    ids=str,
)
def test_in_every_way_to_compute(tmp_path, wide, options):
    check(tmp_path, replace(wide, memory=replace(ON, **options)))


def test_pictures_with_cuda_graphs_that_go_together(tmp_path, wide):
    pictures = tuple(make_sample(tmp_path, name, shape=(16, 1, 64, 64)) for name in "abcd")
    loop = replace(wide.loop, gradient_accumulation=4)
    check(tmp_path, replace(wide, data=replace(wide.data, samples=pictures), loop=loop))


def test_tokens_that_take_a_route(tmp_path, wide):
    check(tmp_path, replace(wide, tread=TreadOptions(routes="1 to 2: 0.5")))


def test_what_is_drawn_on_the_gpu(tmp_path, wide):
    check(tmp_path, replace(wide, adapter=replace(wide.adapter, dropout=0.1, rank_dropout=0.1)))


@pytest.mark.parametrize("name", ["adamw8bit", "muon", "prodigy"])
def test_other_optimizers(tmp_path, wide, name):
    if name == "adamw8bit" and package_problems(["bitsandbytes"]):
        pytest.skip("a package is missing")
    check(tmp_path, replace(wide, optimizer=replace(wide.optimizer, name=name)))
