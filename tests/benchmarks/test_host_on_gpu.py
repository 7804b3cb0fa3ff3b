"""What the benchmark of the real ComfyUI gives to it, and how its log is judged; its parts need a ComfyUI of their own."""

import json
from dataclasses import replace

import pytest
from wan_train.benchmarks.host_material import (
    ON_CPU,
    TEMPLATE,
    draw_large_clip,
    draw_media,
    high_alone,
    sampling,
    usual,
    write_models,
)
from wan_train.benchmarks.host_report import began, unexpected
from wan_train.core.data.scan import scan_folder
from wan_train.core.settings.dataset import DatasetOptions
from wan_train.core.train.events import EventWriter
from wan_train.core.wan.checkpoint import inspect
from wan_train.tools.miniature import DiTSize

TRACEBACK = "Traceback (most recent call last):\n  File\n"


def test_the_models_are_of_the_true_form(tmp_path):
    scale = replace(ON_CPU, large=DiTSize(dim=256, ffn_dim=512, num_heads=2, num_layers=2))
    write_models(tmp_path, scale)
    widths = {path.stem: inspect(path).config.dim for path in (tmp_path / "diffusion_models").iterdir()}
    assert widths == {"small_high_noise": 96, "small_low_noise": 96, "large_high_noise": 256}
    assert len(list((tmp_path / "text_encoders").iterdir())) == len(list((tmp_path / "vae").iterdir())) == 1


def test_pictures_and_clips_are_in_several_sizes(tmp_path):
    draw_media(tmp_path / "shapes", 64, 9)
    draw_large_clip(tmp_path / "large", ON_CPU.too_large, 1)
    options = DatasetOptions(width=64, height=64, num_frames=9, trigger_word="shp")
    samples = scan_folder(tmp_path / "shapes", options, index_path=tmp_path / "files.json").samples
    assert len({(sample.width, sample.height) for sample in samples}) > 2
    assert {1, 9} <= {len(sample.frame_indices) for sample in samples}
    (large,) = scan_folder(tmp_path / "large", options, index_path=tmp_path / "files.json").samples
    assert large.file.caption == "shp, a slow wave 1"


def test_each_node_of_the_template_has_a_name(host):
    prompt = usual(host.object_info(), ON_CPU, "person", 4, seed=9)
    shipped = json.loads(TEMPLATE.read_text(encoding="utf-8"))["nodes"]
    assert len(prompt) == len([node for node in shipped if node["type"] != "MarkdownNote"])
    assert prompt["low_train"]["inputs"]["dit"] == ["low_dit", 0]
    assert (
        prompt["high_train"]["inputs"] | {"lora_name": "person", "steps": 4, "seed": 9}
        == prompt["high_train"]["inputs"]
    )
    alone = high_alone(prompt)
    links = {value[0] for node in alone.values() for value in node["inputs"].values() if isinstance(value, list)}
    assert links < set(alone)


@pytest.mark.parametrize("loras", [None, ("high.safetensors", "low.safetensors")])
def test_a_sampling_is_wired_in_itself(loras):
    prompt = sampling(ON_CPU, 64, loras)
    links = {value[0] for node in prompt.values() for value in node["inputs"].values() if isinstance(value, list)}
    assert links == set(prompt) - {"s_saved"}


def test_a_log_with_more_tracebacks_than_refusals_is_told():
    assert unexpected(f"fine\n{TRACEBACK}", 1) == []
    (told,) = unexpected(f"{TRACEBACK}a\n{TRACEBACK}b\n", 1)
    assert told.startswith("2 tracebacks: ")
    assert told.endswith("b\n")
    assert unexpected("Error handling request from 127.0.0.1\n", 0) == ["Error handling request from 127.0.0.1"]


def test_a_run_has_begun_with_its_first_step(tmp_path):
    for name in ("a_run", "b_run"):
        (tmp_path / name).mkdir()
        EventWriter(tmp_path / name / "events.jsonl").write("start", step=0)
    assert began(tmp_path) is None
    EventWriter(tmp_path / "b_run" / "events.jsonl").write("step", step=1, loss=1.0)
    assert began(tmp_path) == tmp_path / "b_run"
    assert began(tmp_path, "a") is None
