"""The compiler is imported when something is asked of it: each case in a process of its own."""

import subprocess
import sys

import pytest
from wan_train.core.launch.ahead import PACK

BEGIN = f"""
import sys
sys.path.insert(0, {str(PACK)!r})
import wantrain; wantrain.load_pack()
import torch
from wan_train.core.later_compiler import import_compiler_later
import_compiler_later()
def is_there(): return "torch._dynamo.convert_frame" in sys.modules
weight = torch.nn.Parameter(torch.zeros(3)); weight.grad = torch.ones(3)
optimizer = torch.optim.AdamW([weight], lr=0.1); optimizer.step(); optimizer.zero_grad()
assert not is_there(), "an optimizer has imported it"
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", BEGIN + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_optimizers_and_checkpointing_do_without_and_compute_the_same():
    said = run(
        "from torch.utils.checkpoint import checkpoint\n"
        "checkpoint(lambda x: x * 2, weight, use_reentrant=False).sum().backward()\n"
        "print(is_there(), weight.grad.tolist(), [round(x, 4) for x in weight.tolist()])"
    )
    assert said.split(" ", 1) == ["False", "[2.0, 2.0, 2.0] [-0.1, -0.1, -0.1]\n"]


@pytest.mark.grid(5)
@pytest.mark.parametrize(
    "code",
    [
        "from torch._dynamo import exc; exc.TorchDynamoException",
        "import torch._dynamo.exc",
        "torch.compile(lambda x: x + 1, backend='eager')(weight)",
        "torch._dynamo.config; import torch._dynamo.eval_frame",
        "torch._dynamo.reset()",
    ],
)
def test_who_asks_for_it_gets_it(code):
    said = run(
        f"{code}\nassert is_there()\n"
        "import torch._dynamo.config as config, torch._dynamo as compiler\n"
        "assert compiler.config is config is sys.modules['torch._dynamo.config']\n"
        "assert compiler is torch._dynamo and compiler.__file__ and compiler.exc.__spec__.origin\n"
        "weight.grad = torch.ones(3); optimizer.step()\n"
        "print(len([f for f in sys.meta_path if type(f).__module__.startswith('wan_train')]))"
    )
    assert said == "0\n"


def test_what_was_left_uncompiled_stays_so_once_the_compiler_is_there():
    run(
        "compiled = torch.compile(lambda: optimizer.zero_grad(), backend='eager')\n"
        "compiled()\n"
        "inner = type(optimizer).zero_grad.__wrapped__\n"
        "assert vars(inner).get('__dynamo_disable') is not inner, 'the compiler was not asked anew'"
    )
