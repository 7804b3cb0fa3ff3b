"""The check and the merging on a GPU: their numbers are those of the CPU but for bf16."""

from dataclasses import replace

import pytest
import torch
from wan_train.core.adapters.combine import MergeOptions, combine
from wan_train.core.adapters.formats import read_lora
from wan_train.core.lora_check.report import check_lora
from wan_train.core.wan.checkpoint import inspect
from wan_train.tests.core.adapters.helpers import write_model
from wan_train.tests.core.lora_check.test_base import lora
from wan_train.tools.miniature import T2V

SIZE = replace(T2V, dim=256, ffn_dim=1024, num_heads=2, num_layers=12)
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_the_gpu_gives_the_numbers_of_the_cpu(tmp_path):
    info, (path, _) = inspect(write_model(tmp_path / "m.safetensors", SIZE)), lora(tmp_path / "x.safetensors", SIZE)
    slow = check_lora(path, base=info)
    fast = check_lora(path, base=info, device=torch.device("cuda"))
    for sigma, share in slow.on_base.effect.items():
        assert fast.on_base.effect[sigma] == pytest.approx(share, rel=0.1, abs=0.01)
    for block, share in slow.on_base.by_block.items():
        assert fast.on_base.by_block[block] == pytest.approx(share, rel=1e-3)


@pytest.mark.parametrize("method", ["ties", "dare_ties", "svd"])
def test_merging_on_the_gpu_is_repeatable_and_ties_is_that_of_the_cpu(tmp_path, method):
    files = [(read_lora(lora(tmp_path / f"{n}.safetensors", SIZE)[0]), 1.0 - n / 4) for n in range(2)]
    options = MergeOptions(method=method, rank=8, energy=1.0, density=0.5, seed=3)
    before = torch.cuda.get_rng_state()
    one, again = (combine(files, options, device=torch.device("cuda"))[0] for _ in range(2))
    assert torch.equal(torch.cuda.get_rng_state(), before)
    slow = combine(files, options)[0]
    for path, module in one.items():
        torch.testing.assert_close(module.delta(), again[path].delta(), atol=1e-5, rtol=1e-4)
        if not method.startswith("dare"):
            torch.testing.assert_close(module.delta(), slow[path].delta(), atol=1e-3, rtol=1e-2)
