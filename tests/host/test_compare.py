"""Compare Checkpoints on the real host: cells are what Preview LoRA makes, are kept, and a broken-off grid goes on."""

import numpy as np
import pytest
from wan_train.core.adapters.formats import read_lora
from wan_train.core.errors import ConfigError
from wan_train.tests.host.graphs import changed, node, two_stages
from wan_train.tests.host.runs import run_folders, succeeded, until
from wan_train.tests.host.test_preview import frames

SAMPLING = {
    "width": 64, "height": 64, "num_frames": 5, "steps": 2, "cfg": 1.0, "seed": 3, "shift": 5.0, "boundary": 0.875,
    "sampler": "euler", "scheduler": "simple", "negative_prompt": "", "fps": 16.0,
}  # fmt: skip
SHIPPING = {
    "precision": "fp32",
    "key_style": "comfyui",
    "rank": 0,
    "author": "",
    "description": "",
    "second_strength": 1.0,
}


@pytest.fixture(scope="module")
def trained(host):
    """Names of the runs of both experts, and the graph that trained them."""
    before = run_folders(host)
    prompt = two_stages(
        lora_name="seen", steps=4, seed=61, learning_rate=2e-2, checkpoint_every=2, validate_every=2,
        low={"checkpoint_every": 3, "steps": 3, "checkpoints_to_loras": True, "keep_copies": 1},
    )  # fmt: skip
    prompt = changed(prompt, "data", held_out=1)
    prompt["pair"] = node("MergeStages", high=["high_train", 0], low=["low_train", 0], name="seen", **SHIPPING)
    entry = host.run(prompt)
    assert succeeded(entry)
    assert "best checkpoint: step" in entry["outputs"]["high_train"]["text"][0]
    high, low = sorted(path.name for path in run_folders(host) - before)
    assert (high.partition("_")[2][:4], low.partition("_")[2][:3]) == ("high", "low")
    return prompt, high, low


def compare(prompt, high_run, low_run, **changes):
    models = {
        f"{stage}_model": node("UNETLoader", unet_name=f"wan_mini_{stage}_noise.safetensors", weight_dtype="default")
        for stage in ("high", "low")
    }
    inputs = {
        "high_run": high_run, "low_run": low_run, "checkpoints": "all", "strengths": "1",
        "prompts": "[trigger] a red circle\na blue square", "with_base": True, "cell_width": 0, **SAMPLING,
    }  # fmt: skip
    wires = {"high": ["high_model", 0], "low": ["low_model", 0], "clip": ["clip", 0], "vae": ["vae", 0]}
    return {
        **{name: prompt[name] for name in ("vae", "clip")},
        **models,
        "compare": node("WanCompareCheckpoints", **{**inputs, **changes}, **wires),
        "cells": node("SaveImage", images=["compare", 2], filename_prefix="cell"),
        "grid": node("PreviewImage", images=["compare", 1]),
        "labels": node("PreviewAny", source=["compare", 3]),
    }


def kept(host):
    return {path: path.stat().st_mtime_ns for path in (host.base / "output" / "wan_train" / "compared").glob("*.s*")}


def error_of(entry):
    return dict(entry["status"]["messages"])["execution_error"]["exception_message"]


def test_cells_are_previews_and_are_kept(host, trained):
    prompt, high, low = trained
    grid = compare(prompt, high, low)
    entry = host.run(grid)
    assert succeeded(entry)
    cells = frames(host, entry, "cells").reshape(6, 5, 64, 64, 3)  # base, 2, 4 and the same for the second prompt
    assert entry["outputs"]["labels"]["text"][:3] == [
        "without the LoRA, [trigger] a red circle".replace("[trigger]", "shp"),
        "high 2, low 3, shp a red circle",
        "high 4, low 3, shp a red circle",
    ]
    preview = {**prompt, **{name: grid[name] for name in ("high_model", "low_model")}}
    preview["preview"] = node(
        "PreviewLoRA", pair=["pair", 0], prompt="shp a red circle", strength=1.0, compare=True, **SAMPLING,
        high=["high_model", 0], low=["low_model", 0], clip=["clip", 0], vae=["vae", 0],
    )  # fmt: skip
    for number, name in enumerate(("on", "off")):
        preview[name] = node("SaveImage", images=["preview", number], filename_prefix=f"compared_{name}")
    theirs = host.run(preview)
    assert succeeded(theirs)
    assert np.array_equal(cells[2], frames(host, theirs, "on"))
    assert np.array_equal(cells[0], frames(host, theirs, "off"))
    assert len({cell.tobytes() for cell in cells}) == 6
    assert len(kept(host)) == 6
    text = entry["outputs"]["compare"]["text"][0].splitlines()
    assert text[0] == "2 x 3 videos, 6 new"
    assert text[1].startswith(f"best checkpoint of {high} by its score: step ")
    assert "scores out of 100: step 2: " in text[1]
    before = kept(host)
    more = changed(grid, "compare", checkpoints="4", strengths="1, 0.5", with_base=False)
    assert succeeded(host.run(more))
    now = kept(host)
    assert len(now) == 8  # the last checkpoint at another strength, for two prompts
    assert {path: now[path] for path in before} == before


@pytest.mark.grid(3, "resumed on the host")
def test_a_grid_that_was_broken_off_goes_on(host, trained):
    prompt, high, _low = trained
    before = set(kept(host))

    def made():
        return {path: time for path, time in kept(host).items() if path not in before}

    def grid(rows):
        return compare(prompt, high, "none", seed=4, steps=3, prompts="\n".join(f"prompt {n}" for n in range(rows)))

    prompt_id = host.queue(grid(60))  # which would take a minute
    until(made, "the first video")
    host.interrupt(prompt_id)
    assert not succeeded(host.wait(prompt_id))
    first = made()
    rows = len(first) // 3 + 2  # those that are there, and some that are not
    entry = host.run(grid(rows))
    assert succeeded(entry)
    new = 3 * rows - len(first)
    assert entry["outputs"]["compare"]["text"][0].splitlines()[0] == f"{rows} x 3 videos, {new} new"
    now = made()
    assert len(now) == 3 * rows
    assert {path: now[path] for path in first} == first


def test_what_cannot_be_compared_is_a_sentence(host, trained):
    prompt, high, low = trained
    assert "no run is chosen" in error_of(host.run(compare(prompt, "none", "none")))
    assert "a run of the low noise expert" in error_of(host.run(compare(prompt, low, "none")))
    assert "has no checkpoint of step 9: it keeps 2, 4" in error_of(
        host.run(compare(prompt, high, low, checkpoints="9"))
    )


def test_the_training_names_the_best_checkpoint_and_merge_takes_it(host, trained):
    prompt, high, _low = trained
    loras = host.base / "models" / "loras"
    merged = {name: item for name, item in prompt.items() if name != "pair"}
    for weights in ("best", "average"):
        merged[weights] = node(
            "MergeStages", high=["high_train", 0], name=f"seen_{weights}", weights=weights, **SHIPPING
        )
    entry = host.run(merged)
    assert succeeded(entry)
    text = entry["outputs"]["best"]["text"][0]
    step = next(number for number in ("2", "4") if f"high: step {number} of {high}, the best checkpoint" in text)
    best, average = (read_lora(loras / f"seen_{name}_high_noise.safetensors").metadata for name in ("best", "average"))
    assert best["ss_steps"] == step
    assert average["wantrain.weights"] == "post_hoc_ema"
    assert (loras / "seen_low_noise_step000003.safetensors").is_file()
    assert read_lora(loras / "seen_low_noise_step000003.safetensors").metadata["modelspec.trigger_phrase"] == "shp"


def test_a_copy_is_known_under_another_name_and_names_its_run(host, trained):
    prompt, _high, _low = trained
    loras = host.base / "models" / "loras"
    (loras / "seen_low_noise_step000003.safetensors").rename(loras / "half way.safetensors")
    grid = compare(prompt, "none", "none", prompts="a red circle", with_base=False)
    grid["copy"] = node("WanLoRAFromFile", lora_file="half way.safetensors", stage="auto")
    grid["compare"]["inputs"]["trained_low"] = ["copy", 0]
    entry = host.run(grid)
    assert succeeded(entry)
    assert entry["outputs"]["labels"]["text"] == ["step 3, a red circle"]
    grid["copy"] = node("WanLoRAFromFile", lora_file="seen_low_noise.safetensors", stage="auto")
    assert "which is of no run that is there" in error_of(host.run(grid))


def test_a_checkpoint_that_a_run_removes_meanwhile_is_a_sentence(comfy, tmp_path):
    """Another program may train on in the run's folder."""
    from wan_train.nodes.compare_nodes import _file_digest

    with pytest.raises(ConfigError, match=r"adapter\.safetensors went away while it was compared.*Press Run again"):
        _file_digest(tmp_path / "adapter.safetensors")
