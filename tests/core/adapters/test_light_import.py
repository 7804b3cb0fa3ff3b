"""peft without transformers: the same layers and files, and nothing left behind."""

import subprocess
import sys
from pathlib import Path

import pytest

PACK = Path(__file__).parents[3]
_START = """
import sys, torch
sys.path.insert(0, {pack!r})
import wantrain; wantrain.load_pack()
from wan_train.core.adapters.light_import import import_peft
"""
_ADAPTER = """
from torch import nn
from wan_train.core.adapters.setup import add_adapter
from wan_train.core.settings.adapter import AdapterOptions
from wan_train.core.wan.config import WanConfig
from wan_train.core.wan.model import WanTransformer
torch.manual_seed(0)
model = WanTransformer(WanConfig(dim=64, ffn_dim=128, num_heads=2, num_layers=1, text_dim=16))
found = add_adapter(model, AdapterOptions(rank=2, alpha=2.0), seed=1)
print(*(f"{name}:{tensor.double().sum().item():.12f}" for name, tensor in found), torch.initial_seed())
"""


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", _START.format(pack=str(PACK)) + code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def beside_transformers() -> list[str]:
    """What is said, line by line, by a process that has transformers before it imports peft."""
    return run(f"""
import transformers
from wan_train.core.adapters.peft_hooks import import_adapters
import_adapters()
from peft.tuners.tuners_utils import PreTrainedModel as Known
print(Known.__module__)
from transformers.modeling_utils import unwrap_model
layer = torch.nn.Linear(1, 1)
print(unwrap_model(layer) is layer)
{_ADAPTER}""").splitlines()


def test_the_same_layers_without_transformers(beside_transformers):
    """Nor does anything else that they need bring the compiler, or bitsandbytes, which peft looks for at every layer."""
    absent = "transformers", "torch._dynamo", "bitsandbytes"
    light = run(
        f"from wan_train.core.adapters.peft_hooks import import_adapters\nimport_adapters()\n{_ADAPTER}"
        f"assert not {{*{absent}}} & set(sys.modules)"
    )
    assert light.splitlines() == beside_transformers[2:]
    assert "lora_A" in light


def test_a_transformers_that_is_there_is_used(beside_transformers):
    assert beside_transformers[0] == "transformers.modeling_utils"


def test_parts_of_transformers_that_are_imported_later_know_the_real_peft(beside_transformers):
    """transformers imports its parts one by one, and what stood in a package's place then would stay in them."""
    assert beside_transformers[1] == "True"


@pytest.mark.grid(3, "other ways to import peft")
def test_transformers_is_there_for_whoever_imports_it_afterwards():
    said = run("import_peft()\nfrom transformers import AutoConfig, PreTrainedModel\nprint(PreTrainedModel.__module__)")
    assert said.strip() == "transformers.modeling_utils"


@pytest.mark.grid(3, "other ways to import peft")
def test_a_peft_that_does_not_do_without_it_is_imported_as_usual():
    code = """
from wan_train.core.adapters import light_import
def refuse():
    raise AttributeError("module 'torch.distributed' has no attribute 'tensor'")
light_import._try_out = refuse
import_peft()
import peft, transformers
from peft.tuners.lora import LoraModel
assert peft.tuners.tuners_utils.PreTrainedModel is transformers.PreTrainedModel
"""
    run(code)


@pytest.mark.grid(3, "other ways to import peft")
def test_nothing_is_hidden_once_peft_is_there():
    """Threads wait for it together, and one of them may import what the other would hide."""
    run("""
from wan_train.core.adapters import peft_hooks
asked = []
hidden = peft_hooks.hidden
peft_hooks.hidden = lambda *names: asked.append(bool(names)) or hidden(*names)
peft_hooks.import_adapters()
peft_hooks.import_adapters()
assert asked == [True, False], asked
""")
