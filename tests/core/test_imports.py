"""Imports point down, and the core knows nothing of ComfyUI."""

import ast
import sys
from functools import cache
from pathlib import Path

PACK = Path(__file__).resolve().parents[2]
CORE = PACK / "core"
FILES = sorted(CORE.rglob("*.py"))
LAZY = {
    "diffusers",
    "transformers",
    "sentencepiece",
    "huggingface_hub",
    "prodigyopt",
    "schedulefree",
    "tensorboard",
    "wandb",
    "torchsde",
}  # imported inside functions only
FOREIGN = {
    "torch", "safetensors", "numpy", "PIL", "av", "peft", "bitsandbytes", "psutil", "tqdm", "packaging", "triton",
} | LAZY  # fmt: skip
LEVELS = {
    "errors": 0,
    "facts": 0,
    "hidden": 0,
    "offline": 0,
    "parent": 0,
    "paths": 0,
    "processes": 0,
    "switching": 0,
    "words": 0,
    "devices": 1,
    "gpu_limit": 1,
    "later_compiler": 1,
    "limits": 1,
    "lock_file": 1,
    "methods": 1,
    "names": 1,
    "packages": 1,
    "pinned": 1,
    "prompts": 1,
    "routes": 1,
    "serial": 1,
    "shortage": 1,
    "sweep": 1,
    "torch_compat": 1,
    "moving": 2,
    "disk": 3,
    "gpu_failure": 3,
    "locks": 3,
    "safe_json": 3,
    "safetensors_file": 4,
    "settings": 4,
    "flow": 5,
    "parallel": 5,
    "schedules": 5,
    "data": 6,
    "look": 7,
    "wan": 6,
    "captioning": 7,
    "memory": 7,
    "adapters": 8,
    "encoders": 8,
    "optimizers": 8,
    "sample": 8,
    "kernels": 9,
    "lora_check": 9,
    "objective": 9,
    "plan": 10,
    "train": 11,
    "generate": 12,
    "launch": 12,
    "track": 12,
    "recipe": 13,
    "importers": 14,
    "cli": 15,
}  # fmt: skip


@cache
def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path, *, in_functions=True):
    """(level of relativity, module) of every import in a file."""
    tree = tree_of(path)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    lazy = set() if in_functions else {node for function in functions for node in ast.walk(function)}
    for node in set(ast.walk(tree)) - lazy:
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""


def test_every_core_file_has_a_level():
    assert {p.stem if p.is_file() else p.name for p in CORE.iterdir()} - {"__init__", "__pycache__"} == set(LEVELS)


def wrong_imports(inside, found):
    """What a file of the core must not import; `inside`: its path there, in parts."""
    own = inside[0].removesuffix(".py")
    for level, module in found:
        top = module.split(".")[0]
        if level == 0:
            if top not in sys.stdlib_module_names | FOREIGN:
                yield f"{module} is not for the core"
        elif level == len(inside):  # from ..package or, at the top, from .package
            if top != own and LEVELS[top] >= LEVELS[own]:
                yield f"{own} must not import {module}"
        elif level > len(inside):
            yield f"{module} leaves the core"


def test_core_imports_point_down():
    wrong = {path: list(wrong_imports(path.relative_to(CORE).parts, imports(path))) for path in FILES}
    assert {path: said for path, said in wrong.items() if said} == {}


def test_an_import_that_does_not_point_down_is_seen():
    found = [(2, "train.run"), (0, "comfy"), (3, "nodes"), (2, "wan.model"), (1, "x"), (0, "torch")]
    assert list(wrong_imports(("data", "scan.py"), found)) == [
        "data must not import train.run",
        "comfy is not for the core",
        "nodes leaves the core",
        "data must not import wan.model",
    ]


def test_optional_packages_are_imported_where_they_are_used():
    early = {path: {module.split(".")[0] for _, module in imports(path, in_functions=False)} & LAZY for path in FILES}
    assert {path: names for path, names in early.items() if names} == {}


def test_the_model_knows_nothing_of_memory_or_training():
    for path in (CORE / "wan").glob("*.py"):
        tops = {module.split(".")[0] for level, module in imports(path) if level == 2}
        assert tops <= {"disk", "errors", "facts", "pinned", "routes", "serial", "words"}, (path.name, tops)


def test_only_the_host_folder_touches_the_hosts_internals():
    for path in (PACK / "nodes").rglob("*.py"):
        foreign = {module for level, module in imports(path) if level == 0 and module.split(".")[0] in HOST}
        if path.parent.name != "host":
            assert foreign <= {"comfy_api.latest"}, (path.name, foreign)


def test_the_host_folder_knows_no_node():
    """It may use the core, and itself."""
    for path in (PACK / "nodes" / "host").glob("*.py"):
        assert not [module for level, module in imports(path) if level == 2], path.name


HOST = {
    "comfy",
    "comfyui_version",
    "comfy_api",
    "comfy_extras",
    "comfy_execution",
    "folder_paths",
    "server",
    "nodes",
    "execution",
}
