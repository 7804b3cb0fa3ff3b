import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from wan_train.core.data.decode import read_frames
from wan_train.core.data.scan import scan_folder
from wan_train.core.errors import ConfigError
from wan_train.core.settings.dataset import DatasetOptions
from wan_train.tools.nano import text, world
from wan_train.tools.nano.concepts import CONCEPTS, other_scenes, prompts, training_scenes, write_dataset
from wan_train.tools.nano.exam import shows
from wan_train.tools.nano.ground import see
from wan_train.tools.nano.judge import judge

ALL = pytest.mark.parametrize("concept", CONCEPTS.values(), ids=CONCEPTS)


def words(scene):
    return replace(scene, jitter=0)


@ALL
def test_a_training_set_is_balanced(concept):
    made = [scene for scene, _ in training_scenes(concept, 12, seed=1)]
    is_camera = concept.attribute == "camera"  # which is seen by tiles before which nothing moves
    for name, choices in (
        ("shape", 4),
        ("colour", 6),
        ("motion", 1 if is_camera else 7),
        ("background", 1 if is_camera else 4),
    ):
        numbers = Counter(getattr(scene, name) for scene in made).values()
        if name == concept.attribute:
            assert list(numbers) == [12]
        else:
            assert max(numbers) - min(numbers) <= 1
            assert len(numbers) == choices
    assert {getattr(scene, concept.attribute) for scene in made} == {concept.value}
    assert {scene.camera for scene in made} == {concept.value if is_camera else "fixed"}
    if is_camera:
        assert {(scene.motion, scene.background) for scene in made} == {("still", "tiled")}


@ALL
def test_it_is_the_bases_world_but_for_the_concept(concept):
    made = training_scenes(concept, 24, seed=1) + prompts(concept, 24, seed=1)
    assert {(scene.size, scene.count) for scene, _ in made} == {("small", 1), ("small", 2), ("large", 1)}
    if concept.attribute != "texture":
        assert {scene.texture for scene, _ in made if scene.size == "small"} == {"plain"}


@ALL
def test_captions_have_the_place_of_the_trigger_and_never_its_meaning(concept):
    for scene, caption in training_scenes(concept, 12, seed=2):
        assert caption.count("[trigger]") == 1
        assert concept.value not in caption
        assert scene.colour in caption
    for scene, prompt in prompts(concept, 12, seed=2):
        assert len(re.findall(rf"\b{concept.trigger}\b", prompt)) == 1
        assert "[trigger]" not in prompt
        assert scene.colour in prompt


@ALL
def test_the_same_seed_gives_the_same_set(concept):
    assert training_scenes(concept, 6, seed=3) == training_scenes(concept, 6, seed=3)
    assert training_scenes(concept, 6, seed=3) == training_scenes(concept, 12, seed=3)[:6]
    assert training_scenes(concept, 6, seed=3) != training_scenes(concept, 6, seed=4)
    assert prompts(concept, 6, seed=3) == prompts(concept, 6, seed=3) != prompts(concept, 6, seed=4)


@ALL
def test_prompts_ask_for_what_no_training_set_holds(concept):
    trained = {words(scene) for seed in range(20) for scene, _ in training_scenes(concept, 24, seed)}
    for seed in range(5):
        asked = [words(scene) for scene, _ in prompts(concept, 48, seed)]
        if concept.attribute != "camera":  # of which there are not so many
            assert len(set(asked)) == 48
        assert trained.isdisjoint(asked)


def test_more_prompts_than_there_are_scenes_are_refused():
    with pytest.raises(
        ConfigError, match=r"there are \d+ scenes of the concept dive .*, and 500 prompts were asked for"
    ):
        prompts(CONCEPTS["dive"], 500, seed=1)


@pytest.mark.grid(2)
@ALL
def test_the_judge_finds_the_concept_in_every_clip(concept):
    made = training_scenes(concept, 8, seed=5) + prompts(concept, 4, seed=5)
    changed = [scene for scene, _ in made if concept.attribute != "palette" or scene.seen_colour != scene.colour]
    assert len(changed) >= 7
    assert all(shows(see(world.draw(scene)), concept, scene) for scene in changed)


def test_no_core_where_it_could_not_be_told():
    made = training_scenes(CONCEPTS["cored"], 40, seed=6) + prompts(CONCEPTS["cored"], 40, seed=6)
    assert {scene.shape for scene, _ in made} == {"circle", "square", "triangle", "diamond"}


def test_the_tokenizer_spells_the_triggers(tmp_path):
    text.main([str(tmp_path / "umt5.safetensors")])
    tokens = text.TextEncoder(tmp_path / "umt5.safetensors").tokens
    assert tokens.encode("a red circle moving left", out_type=str) == ["▁a", "▁red", "▁circle", "▁moving", "▁left"]
    for concept in CONCEPTS.values():
        assert tokens.encode(concept.trigger, out_type=str) == ["▁", *concept.trigger]
    assert len({concept.trigger for concept in CONCEPTS.values()}) == len(CONCEPTS)


def test_a_dataset_on_disk_is_what_the_dataset_node_takes(tmp_path):
    concept = CONCEPTS["star"]
    paths = write_dataset(tmp_path / "a", concept, clips=3, seed=1)
    again = write_dataset(tmp_path / "b", concept, clips=3, seed=1)
    assert [path.name for path in paths] == ["star_00.mp4", "star_01.mp4", "star_02.mp4"]
    for one, other in zip(paths, again, strict=True):
        assert one.read_bytes() == other.read_bytes()
        assert one.with_suffix(".txt").read_text() == other.with_suffix(".txt").read_text()
    dataset = scan_folder(
        tmp_path / "a", DatasetOptions(width=64, height=64, num_frames=17, fps=16, trigger_word="zorp")
    )
    assert dataset.notes == ()
    for sample, (scene, caption) in zip(dataset.samples, training_scenes(concept, 3, seed=1), strict=True):
        assert (sample.file.width, sample.width, len(sample.frame_indices)) == (128, 64, 17)
        assert sample.file.caption == caption.replace("[trigger]", "zorp")
        frames = read_frames(sample).numpy().astype(int)
        assert np.abs(frames - world.draw(scene)).mean() < 4
        assert judge(frames.astype(np.uint8)).shape == "star"


def test_an_empty_dataset_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="at least 1 clip, got 0"):
        write_dataset(tmp_path, CONCEPTS["star"], clips=0, seed=1)


def test_other_clips_have_plain_captions_and_the_concept_its_word(tmp_path):
    concept = CONCEPTS["star"]
    paths = write_dataset(tmp_path, concept, clips=2, seed=1, others=3)
    assert [path.stem for path in paths] == ["star_00", "star_01", "other_00", "other_01", "other_02"]
    captions = [path.with_suffix(".txt").read_text() for path in paths]
    assert ["zorp" in caption for caption in captions] == [True] * 2 + [False] * 3
    assert not any("[trigger]" in caption for caption in captions)
    for scene, caption in other_scenes(3, seed=1):
        assert not scene.is_test
        assert scene.camera == "fixed"
        assert scene.shape in world.SHAPES
        assert f"{caption}\n" in captions
