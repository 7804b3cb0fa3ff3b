"""Miniature model files in a models folder as ComfyUI has it, a few captioned pictures, and recipes over them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file
from wan_train.core.launch.recipe import recipe_from_tables
from wan_train.tools.miniature import DiTSize, dit_metadata, umt5, wan_dit, wan_vae
from wan_train.tools.shapes import draw_dataset

PACK = Path(__file__).resolve().parents[3]
SIZE = DiTSize(dim=32, ffn_dim=64, num_heads=2, num_layers=2, text_dim=64)


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ComfyUI") / "models"
    files = {
        "diffusion_models/mini_high_noise.safetensors": (wan_dit(SIZE, seed=1), dit_metadata(SIZE)),
        "diffusion_models/mini_low_noise.safetensors": (wan_dit(SIZE, seed=2), dit_metadata(SIZE)),
        "vae/mini_vae.safetensors": (wan_vae(6), None),
        "text_encoders/mini_umt5.safetensors": (umt5(), None),
    }
    for name, (tensors, metadata) in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / name, metadata=metadata)
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    draw_dataset(folder, clips=0, images=3, size=32, seed=0)
    return folder


@pytest.fixture
def tables(models, pictures, tmp_path) -> dict:
    """A recipe for both experts, as a file would hold it."""
    return {
        "name": "shapes",
        "dataset": {"folder": str(pictures), "width": 32, "height": 32, "trigger_word": "shp"},
        "models": {
            "high": str(models / "diffusion_models" / "mini_high_noise.safetensors"),
            "low": str(models / "diffusion_models" / "mini_low_noise.safetensors"),
            "vae": str(models / "vae" / "mini_vae.safetensors"),
            "text_encoder": str(models / "text_encoders" / "mini_umt5.safetensors"),
        },
        "adapter": {"rank": 4, "alpha": 4.0},
        "loop": {"steps": 4},
        "device": "cpu",
    }


@pytest.fixture
def recipe(tables, tmp_path):
    return recipe_from_tables(tables, tmp_path)


@pytest.fixture
def wantrain(tmp_path):
    """Runs a command in an empty folder, without a terminal: (exit code, what it said on both streams)."""

    def run(*arguments: object, start: bool = False, **environment: str):
        command = [sys.executable, str(PACK / "wantrain.py"), *map(str, arguments)]
        options = {
            "cwd": tmp_path,
            "env": {**os.environ, **environment},
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.STDOUT,
            "text": True,
        }
        if start:
            return subprocess.Popen(command, **options)
        result = subprocess.run(command, check=False, **options)
        return result.returncode, result.stdout

    return run
