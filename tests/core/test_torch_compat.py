"""What may change with a release of PyTorch stands in one file."""

import ast
import zipfile
from pathlib import Path

import torch
from wan_train.core import torch_compat
from wan_train.core.adapters import peft_hooks
from wan_train.core.packages import NEEDS
from wan_train.core.torch_compat import saving_without_checksums
from wan_train.tools import versions

PACK = Path(__file__).resolve().parents[2]
CORE = PACK / "core"


# Private attributes of torch's tensors, which any name may stand for.
OF_TENSORS = {"_base", "_backward_hooks", "_cdata", "_grad_fn", "_is_view", "_version", "_use_count"}


def private_names(tree):
    """Names of PyTorch that begin with an underscore: `torch._C`, `from torch._dynamo import exc`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for module in modules:
                top, *rest = module.split(".")
                if top == "torch" and any(part.startswith("_") for part in rest):
                    yield module
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            root = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            if (isinstance(root, ast.Name) and root.id == "torch") or node.attr in OF_TENSORS:
                yield ast.unparse(node)


def test_private_names_are_found():
    code = "import torch._C\nfrom torch._dynamo import exc\ntorch.a._b(1)\nx._version\n"
    code += "torch.__version__\nself._c\nfrom torch import nn"
    assert sorted(private_names(ast.parse(code))) == ["torch._C", "torch._dynamo", "torch.a._b", "x._version"]


def test_no_other_file_uses_private_names_of_torch():
    found = {path: list(private_names(ast.parse(path.read_text(encoding="utf-8")))) for path in CORE.rglob("*.py")}
    assert {path.relative_to(CORE).as_posix() for path, names in found.items() if names} == {"torch_compat.py"}


def test_lists_of_tensors_are_changed_in_place():
    numbers, others = [torch.ones(2), torch.ones(3)], [torch.full((2,), 2.0), torch.full((3,), 3.0)]
    torch_compat.foreach_copy_(numbers, others)
    torch_compat.foreach_add_(numbers, others)
    torch_compat.foreach_mul_(numbers, torch.tensor(0.5))
    assert [tensor.tolist() for tensor in numbers] == [[2.0] * 2, [3.0] * 3]
    torch_compat.foreach_zero_(numbers)
    assert not any(tensor.any() for tensor in numbers)


def test_views_are_known_from_their_source():
    source = torch.ones(4)
    assert torch_compat.is_view(source.view(2, 2))
    assert not torch_compat.is_view(source)


def test_this_torch_is_one_that_is_supported():
    release = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    assert release >= tuple(int(part) for part in torch_compat.OLDEST.split(".")[:2])


def test_the_versions_that_are_tested_are_those_that_are_stated():
    assert versions.TORCH_ENDS["oldest"] == f"torch=={torch_compat.OLDEST}"
    assert versions.PEFT_ENDS["oldest"][0] == f"peft=={peft_hooks.TESTED[0]}"
    assert NEEDS["peft"].minimum == peft_hooks.TESTED[0].removesuffix(".0")
    for name in ("requirements.txt", "pyproject.toml"):
        assert f"peft>={NEEDS['peft'].minimum}" in (PACK / name).read_text(encoding="utf-8")


def test_a_file_is_saved_without_checksums_of_its_parts(tmp_path):
    before = torch.serialization.get_crc32_options()
    state = {"moments": torch.arange(1000.0)}
    with saving_without_checksums():
        torch.save(state, tmp_path / "without.pt")
    assert torch.serialization.get_crc32_options() == before
    torch.save(state, tmp_path / "with.pt")

    def checksums(name):
        with zipfile.ZipFile(tmp_path / name) as archive:
            return {Path(info.filename).name: info.CRC for info in archive.infolist() if info.file_size == 4000}

    assert checksums("without.pt") != checksums("with.pt")
    found = torch.load(tmp_path / "without.pt", weights_only=True)
    assert torch.equal(found["moments"], state["moments"])
