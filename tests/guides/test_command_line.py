"""The data chapters of the guides on the command line: import their files, scan, cache."""

import pytest
from safetensors.torch import load_file
from wan_train.core.cli.display import Display
from wan_train.core.cli.main import main
from wan_train.core.recipe.pipeline import scan
from wan_train.core.recipe.recipe import read_recipe
from wan_train.tests.core.launch.fixtures import models  # noqa: F401
from wan_train.tests.guides.material import draw_s0, draw_s1, draw_s2, s0_files, s1_files, s2_files

pytest.importorskip("tomllib")


EXPERTS = {"high": "diffusion_models/mini_high_noise", "low": "diffusion_models/mini_low_noise"}
MODELS = {**EXPERTS, "vae": "vae/mini_vae", "text_encoder": "text_encoders/mini_umt5"}


@pytest.fixture
def follow(tmp_path, monkeypatch, capsys):
    """Draw the dataset, write the guide's files, and import them: (the recipe's path, the import's report)."""

    def run(draw, files):
        monkeypatch.chdir(tmp_path)
        folder = tmp_path / "dataset"
        draw(folder)
        paths = []
        for name, text in files(folder.as_posix()).items():
            place = folder if name == "dataset.toml" else tmp_path  # where the guide puts it
            (place / name).write_text(text, encoding="utf-8")
            paths.append(str(place / name))
        assert main(["import", *paths, "--recipe", "mine.toml"]) == 0
        return tmp_path / "mine.toml", capsys.readouterr().out

    return run


@pytest.fixture
def scanned(capsys):
    """The lines of `wantrain scan`."""

    def run(recipe):
        assert main(["scan", str(recipe)]) == 0
        return capsys.readouterr().out.splitlines()

    return run


def cache(recipe, models):  # noqa: F811
    """What is cached with the miniature models in place of those that the guide downloads."""
    changes = [f"models.{name}={models / place}.safetensors" for name, place in MODELS.items()]
    arguments = ["cache", str(recipe), *(part for change in changes for part in ("--set", change))]
    assert main(arguments) == 0
    found = recipe.parent / "wan_train" / "cache"
    return [load_file(path) for kind in ("latents", "text") for path in sorted(found.glob(f"{kind}/*/*.safetensors"))]


@pytest.mark.grid(2, "the guide of s0")
def test_s0_pictures_of_960(follow, scanned, models):  # noqa: F811
    recipe, _ = follow(draw_s0, s0_files)
    lines = scanned(recipe)
    assert lines[0] == "0 clips, 2 images: 2 samples an epoch"
    assert lines[1].startswith("buckets: 960x960x1 (1), 1168x784x1 (1)")
    assert "200 steps are 100 epochs" in lines[2]
    assert [line for line in lines if "dataset.toml" in line] == [
        "- dataset.toml: note: ignored: not an image or clip of a known kind"
    ]
    tensors = cache(recipe, models)
    shapes = {tuple(entry["latents"].shape[1:]) for entry in tensors if "latents" in entry}
    assert shapes == {(1, 120, 120), (1, 98, 146)}
    assert sum("context" in entry for entry in tensors) == 3  # two captions, and the empty one


@pytest.mark.grid(2, "the guide of s1")
def test_s1_clips_of_33_frames(follow, scanned, models):  # noqa: F811
    recipe, report = follow(draw_s1, s1_files)
    assert "not supported" not in report.splitlines()[0].lower()
    lines = scanned(recipe)
    assert lines[0] == "3 clips, 0 images: 3 samples an epoch"
    assert lines[1] == "buckets: 64x64x33 (3)"
    assert "3,000 steps in all" in lines[2]  # AI-Toolkit counts both experts
    assert any("33 frames spread over 8.00 s" in line for line in lines)
    dataset = scan(read_recipe(recipe), Display(), report=False)
    assert sorted(dataset.captions) == [
        "a portrait of zxqperson, cinematic light",
        "a portrait of zxqperson, medium shot, studio light",
        "zxqperson in casual clothes",
    ]
    assert {sample.treatment.caption_dropout for sample in dataset.samples} == {0.05}
    for sample in dataset.samples:  # over the whole clip
        assert sample.frame_indices[0] == 0
        assert sample.frame_indices[-1] == sample.file.num_frames - 1
    tensors = cache(recipe, models)
    assert [tuple(entry["latents"].shape[1:]) for entry in tensors if "latents" in entry] == [(9, 8, 8)] * 3
    assert sum("context" in entry for entry in tensors) == 4


@pytest.mark.grid(2, "the guide of s2")
def test_s2_clips_of_75_frames(follow, scanned):
    recipe, report = follow(draw_s2, s2_files)
    assert "73" in report
    lines = scanned(recipe)
    assert lines[0] == "1 clip, 0 images: 1 sample an epoch"
    assert lines[1] == "buckets: 480x480x73 (1)"
    assert any(line.startswith("- boat.mp4: skipped: ") for line in lines)  # min_frames is 75
    dataset = scan(read_recipe(recipe), Display(), report=False)
    assert dataset.captions == ("an old black and white cartoon of a mouse",)
    assert [sample.repeats for sample in dataset.samples] == [1]  # SimpleTuner's 0
