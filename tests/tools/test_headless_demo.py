"""The demo's job by the command line."""

import json
import sys
from pathlib import Path

from wan_train.core.launch.recipe import read_recipe
from wan_train.tools import demo, headless_demo
from wan_train.tools.comfyui import UnreachableError
from wan_train.tools.examples import demo_sketch

PACK = Path(__file__).resolve().parents[2]


def test_the_recipe_says_what_the_graph_says(tmp_path):
    path = tmp_path / "job.json"
    path.write_text(json.dumps(headless_demo.recipe(tmp_path)), encoding="utf-8")
    recipe = read_recipe(path)
    node = next(n["inputs"] for n in demo_sketch().prompt.values() if n["class_type"] == "TrainLoRAStage")
    set_by_hand = {name for name in node if not isinstance(node[name], list)} - {"stage", "lora_name"}
    assert set_by_hand == set(headless_demo.PLACES)
    assert (recipe.loop.steps, recipe.adapter.rank, recipe.schedule.kind) == (node["steps"], node["rank"], "cosine")
    assert recipe.optimizer.learning_rate == node["learning_rate"]
    assert recipe.dataset.width == 96


def test_clips_become_a_pair_of_loras_and_a_video(tmp_path, capsys):
    demo.prepare(Path(sys.executable), PACK, tmp_path)
    headless_demo.run(Path(sys.executable), PACK, tmp_path, changes=("loop.steps=2",))
    names = sorted(path.name for path in (tmp_path / "models" / "loras").iterdir())
    assert names == ["demo_shapes_high_noise.safetensors", "demo_shapes_low_noise.safetensors"]
    assert sorted(path.suffix for path in (tmp_path / "output" / "video").iterdir()) == [".mp4", ".png"]
    assert "Without and with the LoRA: " in capsys.readouterr().out


def test_where_no_comfyui_can_be_had_it_says_so(tmp_path, monkeypatch, capsys):
    def unreachable(_):
        raise UnreachableError("No ComfyUI was found.")

    monkeypatch.setattr(demo, "find_host", lambda *_: None)
    monkeypatch.setattr(demo, "fetch_host", unreachable)
    assert demo.find_or_fetch(tmp_path) is None
    assert capsys.readouterr().out.startswith("No ComfyUI was found. Until then the same job runs without ComfyUI")
