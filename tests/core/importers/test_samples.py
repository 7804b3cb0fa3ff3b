"""Prompts, sizes and seeds of previews as other trainers have them."""

import json

import pytest
from wan_train.core.data.sample_prompts import read_prompts
from wan_train.core.importers.setup import import_setup
from wan_train.core.importers.texts import SetupFile
from wan_train.tests.core.importers.given import SETUPS

AITOOLKIT = """
job: extension
config:
  name: "mine"
  process:
    - type: 'sd_trainer'
      datasets:
        - folder_path: "/data"
      model:
        arch: "wan22_14b"
        name_or_path: "somewhere"
      train:
        skip_first_sample: false
      sample:
        sample_every: 100
        walk_seed: true
        seed: 42
        width: 830
        height: 480
        num_frames: 40
        neg: "blurry"
        samples:
          - prompt: "a cat"
            seed: 9
            num_frames: 81
            guidance_scale: 3
          - prompt: "a dog"
            neg: "cats"
            ctrl_img: "dog.png"
"""


def brought(files):
    return import_setup([SetupFile(name, text) for name, text in files.items()])


def outcomes(imported, *words):
    return {line.given.key: line.answer.outcome for line in imported.given if any(w in line.given.key for w in words)}


def prompts_of(imported):
    return read_prompts(imported.recipe.samples, "mine")


def test_aitoolkits_samples_keep_what_is_their_own():
    imported = brought({"job.yaml": AITOOLKIT})
    cat, dog = prompts_of(imported)
    assert (cat.prompt, cat.seed, cat.frames, cat.cfg, cat.negative) == ("a cat", 9, 81, 3.0, "blurry")
    assert (dog.prompt, dog.seed, dog.negative) == ("a dog", None, "cats")
    previews = imported.recipe.previews
    assert (previews.width, previews.height, previews.frames) == (832, 480, 37)
    assert (previews.seed, previews.seed_walk, previews.at_start) == (42, "prompts", True)
    found = outcomes(imported, "sample")
    assert found["sample.width"] == "changed"
    assert found["sample.samples[1].ctrl_img"] == "not supported"
    assert found["sample.samples[0].seed"] == "mapped"
    assert dict(imported.preview)["prompt"] == "a cat"


def test_musubis_lines_are_read_with_their_flags():
    lines = "# mine\na cat --w 830 --h 480 --f 40 --d 7 --s 20 --l 5 --n bad --i pic.png\n\na dog --fs 3\n"
    cat, dog = prompts_of(brought({**SETUPS["musubi"], "sample_prompts.txt": lines}))
    assert (cat.width, cat.height, cat.frames, cat.seed, cat.steps, cat.cfg, cat.negative) == (
        832,
        480,
        37,
        7,
        20,
        5.0,
        "bad",
    )
    assert (cat.prompt, dog.prompt, dog.shift) == ("a cat", "a dog", 3.0)


def test_simpletuners_library_follows_the_prompt_of_its_config():
    files = dict(SETUPS["simpletuner"])
    config = json.loads(files["config.json"]) | {
        "validation_negative_prompt": "blurry", "validation_guidance_skip_layers": [9, 10],
        "validation_guidance_skip_layers_start": 0.02, "validation_guidance_skip_layers_stop": 0.4,
        "validation_guidance_skip_scale": 2.8, "disable_benchmark": False, "validation_seed": -1,
    }  # fmt: skip
    imported = brought({**files, "config.json": json.dumps(config)})
    assert [one.name for one in prompts_of(imported)] == ["validation", "anime_mine", "chef_mine"]
    assert all(one.negative == "blurry" for one in prompts_of(imported))
    previews = imported.recipe.previews
    assert (previews.skip_layers, previews.skip_scale) == ("9, 10", 2.8)
    assert (previews.skip_start, previews.skip_stop) == (0.02, 0.4)
    assert (previews.at_start, previews.seed) == (True, 1)
    assert (previews.width, previews.height, previews.frames) == (832, 480, 81)
    assert outcomes(imported, "validation_seed") == {"validation_seed": "changed"}


@pytest.mark.parametrize("name", ["aitoolkit", "simpletuner"])
def test_a_negative_prompt_without_prompts_is_for_preview_lora(name):
    if name == "aitoolkit":
        text = AITOOLKIT[: AITOOLKIT.index("        samples:")]
        imported = brought({"job.yaml": text})
    else:
        config = json.loads(SETUPS["simpletuner"]["config.json"]) | {"validation_negative_prompt": "blurry"}
        config.pop("validation_prompt")
        imported = brought({"config.json": json.dumps(config)})
    assert imported.recipe.samples.negative == ""
    assert dict(imported.preview)["negative_prompt"] == "blurry"
