"""Writes the example workflows, and the subgraph blueprint, from the prompts that are kept as code.

Run against a ComfyUI that has this pack: python -m tools.make_workflows http://127.0.0.1:8188
"""

import json
import sys
import urllib.request
from pathlib import Path

from core.recipe.presets import preset

from .blueprint import Entry, Exit, blueprint
from .examples import (
    DEMO_MODELS_NOTE,
    DEMO_NOTE,
    Sketch,
    demo_sketch,
    i2v_a14b_sketch,
    note,
    quickstart_sketch,
    recipe_sketch,
    t2v_1_3b_sketch,
    t2v_a14b_sketch,
    ti2v_5b_sketch,
    trainer_sketch,
)
from .layout import Page, api_to_ui
from .workflow import Json

PACK = Path(__file__).resolve().parent.parent

BLUEPRINT = "Train a Wan LoRA"

# Of nodes in their group, from left to right.
COLUMNS = {
    "DatasetFromFolder": 0, "VAELoader": 1, "CLIPLoader": 1, "WanNanoFamily": 1, "CacheLatents": 1, "CacheT5": 1,
    "UNETLoader": 0, "MergeStages": 0, "LoadImage": 0, "PreviewLoRA": 1, "SaveVideo": 2,
}  # fmt: skip

# ComfyUI lists templates in no order that a pack can choose, so that each says which one comes first.
_BEGIN = "## New here? Begin with the template *demo*: it trains in minutes, without model files or a GPU.\n\n"
_FOLDER = "**1.** Put {} into a folder below *input*, each with a *.txt* file that holds its caption."
_CHOOSE = "**2.** Press **R**, and choose the folder in *Dataset from Folder*. {}Choose a *trigger_word*, and {}."
_RUN = "**4.** Press **Run**. *Stop* keeps a checkpoint; *Run* goes on from there."
_SHOWS = "**5.** {} in *models/loras*. *Preview LoRA* shows what it does: left without, right with it."
_ONE_NAME, _BOTH_NAMES = "a *lora_name*", "one *lora_name* for both trainings"


def _experts_note(model: str, clips: str, recipes: str, *more: str) -> str:
    return note(
        f"Train a LoRA for Wan 2.2 {model} A14B: two experts, two files",
        _FOLDER.format(clips),
        _CHOOSE.format("", _BOTH_NAMES),
        f"**3.** *Recipes* on a training node has values for {recipes}, by the size of your GPU. Without one choose"
        " *precision* fp8 for up to 24 GB. *Check* tells what it will take.",
        _RUN,
        _SHOWS.format("Both files are"),
        *more,
        before=_BEGIN,
    )


def _single_note(model: str, *more: str) -> str:
    return note(
        f"Train a LoRA for {model}",
        _FOLDER.format("10 to 50 clips or pictures"),
        _CHOOSE.format("", _ONE_NAME),
        "**3.** *Check* on the training node tells what it will take: steps, memory, time, disk.",
        _RUN,
        _SHOWS.format("The LoRA is"),
        *more,
        before=_BEGIN,
    )


def _recipe_note(title: str, clips: str, captions: str) -> str:
    return note(
        title,
        _FOLDER.format(clips),
        _CHOOSE.format(f"{captions} ", _BOTH_NAMES),
        "**3.** The values are for a GPU of 24 GB: *Recipes* on a training node has those for others."
        " *Check* tells what it will take.",
        _RUN,
        "**5.** Both files are in *models/loras*. Are your clips copied whatever you prompt? *Compare Checkpoints* shows"
        " earlier ones.",
        before=_BEGIN,
    )


def _guide_note(title: str, clips: str, name: str, result: str) -> str:
    return note(
        title,
        _FOLDER.format(clips),
        _CHOOSE.format("", f"{name}. The *trigger_word* may be empty"),
        "**3.** *Check* on a training node tells what it will take. *Recipes* says where each value comes from.",
        _RUN,
        f"**5.** {result}",
        before=_BEGIN,
    )


NOTE_22 = _experts_note("T2V", "10 to 50 clips or pictures", "a character, a style or a motion")
NOTE_I2V = _experts_note(
    "I2V",
    "10 to 50 clips",
    "an effect",
    "The model is given the first frame of each clip; single pictures are left out. *Preview LoRA* starts from your picture.",
)
NOTE_21 = _single_note(
    "Wan 2.1 T2V 1.3B",
    "For Wan 2.1 T2V 14B choose its file in both model loaders, and *precision* fp8 for a GPU of up to 24 GB.",
)
NOTE_5B = _single_note(
    "Wan 2.2 TI2V 5B, from text",
    "It works at 24 frames a second, and in sizes that 32 divides.",
    "For videos from a first frame: choose *first frame* in *Cache Latents*, and connect a picture to *Preview LoRA*.",
)
NOTE_MOTION = _recipe_note(
    "Train a motion or a camera move for Wan 2.2 T2V A14B",
    "10 to 30 clips of 3 to 8 seconds, cut to one movement of various subjects,",
    "Captions name the movement in the same words each time: *orbit 180 around a castle*.",
)
NOTE_STYLE = _recipe_note(
    "Train a style for Wan 2.2 T2V A14B",
    "10 to 40 pictures or clips that share a look, and nothing else,",
    "Captions hold the *trigger_word* and name the look, not what is shown. The class word keeps its meaning"
    " (*output_preservation*): a step takes 2.5 times as long.",
)
NOTE_EFFECT = _recipe_note(
    "Train an image-to-video effect for Wan 2.2 I2V A14B",
    "10 to 30 clips of 3 to 8 seconds that begin just before the effect",
    "Captions name the effect in the same words each time. Each clip's first frame is what the model is given.",
)
NOTE_CHARACTER = _recipe_note(
    "Train a character for Wan 2.2 T2V A14B",
    "10 to 30 pictures or short clips of one person or figure, in other poses, places and light,",
    "Captions hold the *trigger_word* in place of the name, and say what else is to be seen.",
)
NOTE_IMAGES = _guide_note(
    "Train on pictures for Wan 2.2 T2V A14B, as AI_Characters does",
    "18 to 50 pictures",
    _BOTH_NAMES,
    "After 100 epochs both files are in *models/loras*: *epochs* decides how long the runs are.",
)
NOTE_QUICKSTART = _guide_note(
    "Train for Wan 2.1 T2V 1.3B, as SimpleTuner's quick start does",
    "clips of 5 seconds or more, and of 480x480 pixels or more,",
    _ONE_NAME,
    "Its 400,000 steps of warm-up are the whole run: press *Stop and use* when the short videos please you.",
)


def columns(sketch: Sketch) -> dict[str, int]:
    """Node id to its place in the group. Each stage's model stands on its training."""
    found: dict[str, int] = {}
    for key, entry in sketch.prompt.items():
        kind = entry["class_type"]
        if kind in ("LoadWanDiT", "TrainLoRAStage"):
            found[key] = sum(sketch.prompt[other]["class_type"] == kind for other in found)
        else:
            found[key] = COLUMNS[kind]
    return found


def workflows(object_info: Json) -> dict[str, Json]:
    """File name to content."""
    found = {}
    for name, sketch, notes in (
        ("wan2.2_t2v_a14b_lora", t2v_a14b_sketch(), (NOTE_22,)),
        ("wan2.2_i2v_a14b_lora", i2v_a14b_sketch(), (NOTE_I2V,)),
        ("wan2.2_ti2v_5b_lora", ti2v_5b_sketch(), (NOTE_5B,)),
        ("wan2.1_t2v_1.3b_lora", t2v_1_3b_sketch(), (NOTE_21,)),
        ("wan2.2_t2v_a14b_motion", recipe_sketch(preset("motion-24gb").values(), "t2v"), (NOTE_MOTION,)),
        ("wan2.2_t2v_a14b_style", recipe_sketch(preset("style-24gb").values(), "t2v"), (NOTE_STYLE,)),
        ("wan2.2_i2v_a14b_effect", recipe_sketch(preset("effect-24gb").values(), "i2v"), (NOTE_EFFECT,)),
        ("wan2.2_t2v_a14b_character", recipe_sketch(preset("character-24gb").values(), "t2v"), (NOTE_CHARACTER,)),
        ("wan2.2_t2v_a14b_images", recipe_sketch(preset("wan2.2-t2v-images").values(), "t2v"), (NOTE_IMAGES,)),
        (
            "wan2.1_t2v_1.3b_quickstart",
            quickstart_sketch(preset("simpletuner-quickstart").values()),
            (NOTE_QUICKSTART,),
        ),
        ("demo", demo_sketch(), (DEMO_NOTE, DEMO_MODELS_NOTE)),
    ):
        page = Page(groups=sketch.groups, notes=notes, models=sketch.models, columns=columns(sketch))
        found[name] = api_to_ui(sketch.prompt, object_info, page)
    return found


def train_blueprint(object_info: Json) -> Json:
    """The whole training of Wan 2.2 as one node with six inputs."""
    sketch = trainer_sketch()
    page = Page(groups=sketch.groups, models=sketch.models, columns=columns(sketch))
    ids: dict[str, list[int]] = {}
    for key, entry in sketch.prompt.items():
        ids.setdefault(entry["class_type"], []).append(int(key))
    (data,), (pair,) = (ids[kind] for kind in ("DatasetFromFolder", "MergeStages"))
    (high, low), runs = ids["LoadWanDiT"], ids["TrainLoRAStage"]
    entries = (
        Entry("folder", [(data, "folder")]),
        Entry("trigger_word", [(data, "trigger_word")]),
        Entry("high_model", [(high, "model_name")]),
        Entry("low_model", [(low, "model_name")]),
        Entry("lora_name", [(run, "lora_name") for run in runs]),
        Entry("steps", [(run, "steps") for run in runs]),
    )
    return blueprint(
        BLUEPRINT,
        api_to_ui(sketch.prompt, object_info, page),
        entries,
        [Exit("pair", pair, 0)],
        category="Training",
        description="From a folder of captioned clips to a pair of LoRAs for Wan 2.2 A14B. Open it for all settings.",
    )


def main(url: str) -> None:
    """Write the workflows with the node definitions of the ComfyUI at `url`."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy
    with opener.open(f"{url}/object_info", timeout=120) as answer:
        object_info = json.loads(answer.read())
    for name, ui in workflows(object_info).items():
        path = PACK / "example_workflows" / f"{name}.json"
        path.write_text(json.dumps(ui, indent=1) + "\n", encoding="utf-8")
        print(path)
    path = PACK / "subgraphs" / f"{BLUEPRINT}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(train_blueprint(object_info), indent=1) + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main(sys.argv[1])
