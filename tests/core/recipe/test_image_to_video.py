"""Image-to-video by the command line: what is refused before anything loads, and one cache and job with the graph."""

import dataclasses
import io
from pathlib import Path

import pytest
from safetensors.torch import save_file
from wan_train.core.cli.display import Display
from wan_train.core.data.encode import cache_latents, cache_text
from wan_train.core.data.scan import scan_folder
from wan_train.core.data.store import Store
from wan_train.core.errors import ConfigError, ModelFileError, WanTrainError
from wan_train.core.recipe.checks import check_models
from wan_train.core.recipe.pipeline import cache, check_recipe, jobs, scan
from wan_train.core.recipe.recipe import ModelFiles, recipe_from_tables
from wan_train.core.settings.job import DataSpec, TrainSample
from wan_train.core.train.build import build_job
from wan_train.core.train.checks import check_data
from wan_train.core.wan.checkpoint import inspect
from wan_train.tests.core.encoders.helpers import clip_vision, load_as_host
from wan_train.tools.miniature import FLF2V_21, I2V_21, I2V_22, T2V, TI2V_5B, dit_metadata, wan_dit
from wan_train.tools.shapes import draw_dataset

VARIANTS = {"t2v": T2V, "i2v": I2V_22, "i2v_21": I2V_21, "flf2v": FLF2V_21, "ti2v": TI2V_5B}
CONDITIONINGS = ("none", "first frame", "first and last frame")


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Path:
    """One model of each variant, CLIP vision, and a captioned clip."""
    folder = tmp_path_factory.mktemp("files")
    for name, size in VARIANTS.items():
        size = dataclasses.replace(size, dim=32, ffn_dim=64, num_layers=1)
        save_file(wan_dit(size), folder / f"{name}.safetensors", metadata=dit_metadata(size))
    save_file(clip_vision(), folder / "clip_vision_h.safetensors")
    draw_dataset(folder / "clips", clips=1, images=0, size=32, frames=5, seed=0)
    return folder


@pytest.fixture
def make_recipe(files, tables, tmp_path):
    """A recipe over one model."""

    def make(name, conditioning, *, vision):
        models = {key: tables["models"][key] for key in ("vae", "text_encoder")}
        models["single"] = str(files / f"{name}.safetensors")
        if vision:
            models["clip_vision"] = str(files / "clip_vision_h.safetensors")
        dataset = {**tables["dataset"], "folder": str(files / "clips"), "num_frames": 5}
        changed = {**tables, "models": models, "dataset": dataset, "conditioning": conditioning}
        return recipe_from_tables(changed, tmp_path)

    return make


def refused(check):
    try:
        check()
    except (ConfigError, ModelFileError):
        return True
    return False


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "ti2v"])
def test_a_recipe_is_refused_where_its_job_would_be(make_recipe, name):
    allowed = []
    for conditioning in CONDITIONINGS:
        for vision in (False, True):
            recipe = make_recipe(name, conditioning, vision=vision)
            info = inspect(Path(recipe.models.single))
            known = {"known_path": "k", "known_key": "k"} if conditioning != "none" else {}
            features = {"vision_path": "v", "vision_key": "v"} if vision else {}
            sample = TrainSample(
                name="a", latents_path="a", latents_key="a", shape=(16, 2, 4, 4), text_path="t", text_key="t", caption="",
                **known, **features,
            )  # fmt: skip
            empty = {"empty_text_path": "e", "empty_text_key": "e"}
            data = DataSpec(samples=(sample,), text_dim=64, conditioning=conditioning, **empty)
            job = build_job(info, data, recipe.settings("single"), name="a", stage="single")
            is_refused = refused(lambda recipe=recipe: check_models(recipe))
            assert is_refused == refused(lambda job=job, info=info: check_data(job, info))
            allowed += [] if is_refused else [(conditioning, vision)]
    frames = CONDITIONINGS[1:]
    expected = {
        "t2v": [("none", False)],
        "i2v": [(conditioning, False) for conditioning in frames],
        "i2v_21": [(conditioning, True) for conditioning in frames],
        "flf2v": [(frames[1], True)],
    }
    assert allowed == expected[name]


@pytest.mark.parametrize(
    ("name", "conditioning", "vision", "sentence"),
    [
        ("i2v", "none", False, "an image-to-video model, .* set conditioning to 'first frame' or 'first and"),
        ("flf2v", "first frame", True, "given the first and the last frame: set .* to 'first and last frame'"),
        ("ti2v", "first and last frame", False, "given no frame but the first: .* to 'none' or 'first frame'"),
        ("t2v", "first frame", False, "is a text-to-video model: leave conditioning out"),
        ("i2v_21", "first frame", False, r"needs the CLIP features .* set models\.clip_vision to clip_vision_h"),
        ("i2v", "first frame", True, r"takes no CLIP features: leave models\.clip_vision out"),
    ],
)
def test_what_is_missing_or_too_much_is_named(make_recipe, name, conditioning, vision, sentence):
    recipe = make_recipe(name, conditioning, vision=vision)
    with pytest.raises(ConfigError, match=sentence):
        check_recipe(recipe)
    assert not recipe.cache_path.exists()


@pytest.mark.parametrize(
    ("name", "conditioning", "option", "sentence"),
    [
        ("t2v", "none", "first_frames", "first_frames is set, .* is given no pictures: leave it out"),
        ("ti2v", "first frame", "frames_file", "frames_file is set, .* is given no pictures"),
        ("i2v", "first frame", "last_frames", "last_frames is set, but conditioning is 'first frame'"),
    ],
)
def test_pictures_that_would_not_be_given_are_named(make_recipe, name, conditioning, option, sentence):
    recipe = make_recipe(name, conditioning, vision=False)
    source = dataclasses.replace(recipe.datasets[0], **{option: "starts"})
    with pytest.raises(ConfigError, match=sentence):
        check_recipe(dataclasses.replace(recipe, dataset=(source,)))


def test_other_files_in_the_place_of_clip_vision_are_refused(make_recipe):
    recipe = make_recipe("i2v_21", "first frame", vision=True)
    for path, sentence in ((recipe.models.vae, "is a Wan 2.1 VAE; a CLIP vision"), ("gone", "'gone' does not exist")):
        models = ModelFiles(**{**dataclasses.asdict(recipe.models), "clip_vision": path})
        with pytest.raises(WanTrainError, match=sentence):
            check_recipe(dataclasses.replace(recipe, models=models))


def stamps(recipe):
    return {path: path.stat().st_mtime_ns for path in recipe.cache_path.rglob("*.safetensors")}


@pytest.fixture
def host_caches(comfy):
    """What the nodes cache for a recipe."""
    import comfy.utils
    from wan_train.nodes import host

    def make(recipe):
        dataset = scan_folder(recipe.dataset[0].folder, recipe.dataset[0].options)
        video = host.HostVideoEncoder(comfy.sd.VAE(sd=comfy.utils.load_torch_file(recipe.models.vae, safe_load=True)))
        text = host.HostTextEncoder(host.load_umt5(Path(recipe.models.text_encoder)))
        vision = host.HostVisionEncoder(load_as_host(Path(recipe.models.clip_vision)))
        store = Store(recipe.cache_path)
        latents, _ = cache_latents(dataset, video, store, conditioning=recipe.conditioning, vision=vision)
        return latents, cache_text(dataset.captions, text, store)[0]

    return make


@pytest.mark.parametrize(
    ("first", "name", "conditioning"),
    [("graph", "i2v_21", "first frame"), ("command line", "flf2v", "first and last frame")],
)
def test_the_graph_and_the_command_line_share_a_cache(make_recipe, host_caches, first, name, conditioning):
    recipe = make_recipe(name, conditioning, vision=True)
    infos, said = check_recipe(recipe), io.StringIO()
    display = Display(said)
    dataset = scan(recipe, display, report=False)
    if first == "graph":
        latents, text = host_caches(recipe)
        before = stamps(recipe)
        cached = cache(recipe, dataset, display)
    else:
        cached = cache(recipe, dataset, display)
        before = stamps(recipe)
        latents, text = host_caches(recipe)
    assert stamps(recipe) == before
    assert len(before) == 3 + 2  # latents, known frames, features; a caption, the empty one
    assert (cached.latents, cached.text) == (latents, text)
    assert "loading clip_vision_h.safetensors on cpu" in said.getvalue()
    again = cache(recipe, dataset, display, load=False)  # by remembered identities
    job = jobs(recipe, infos, again)["single"]
    assert all(sample.vision_path for sample in job.data.samples)
    assert job.data.conditioning == conditioning
