import re
from dataclasses import replace

import pytest
from wan_train.tools.nano.exam import EXAM_SEED
from wan_train.tools.nano.judge import judge
from wan_train.tools.nano.pairs import GRID, HELD_OUT, KINDS, Pair, PairExam, grade_pair
from wan_train.tools.nano.world import draw

PAIR = Pair.of("barred+dive")


def words(scene):
    return replace(scene, jitter=0)


@pytest.mark.parametrize("name", GRID)
def test_no_prompt_asks_for_what_a_training_set_shows(name):
    pair = Pair.of(name)
    shown = {words(one.scene) for seed in range(3) for one in pair.shown(12, 8, seed)}
    exam = PairExam.of(pair, 4)
    assert [kind for kind in KINDS if len(exam.asked[kind]) != 4] == []
    assert not shown & {words(scene) for scene, _ in exam.all}
    for kind, concepts in {"look": [pair.look], "move": [pair.move], "both": [pair.look, pair.move]}.items():
        for scene, prompt in exam.asked[kind]:
            assert all(getattr(scene, concept.attribute) == concept.value for concept in concepts)
            there = [concept for concept in (pair.look, pair.move) if re.search(rf"\b{concept.trigger}\b", prompt)]
            assert there == concepts, prompt
    assert not any(pair.look.trigger in prompt for _, prompt in exam.asked["plain"])


def test_a_training_set_holds_both_concepts_each_with_its_word():
    shown = PAIR.shown(3, 2, 1)
    assert [one.name for one in shown if one.held_out] == [
        f"{name}_{number:02d}" for name in ("barred", "dive") for number in range(3, 3 + HELD_OUT)
    ]
    assert sum(one.scene.texture == "barred" for one in shown) == 3 + HELD_OUT
    assert sum(one.scene.motion == "dive" for one in shown) == 3 + HELD_OUT
    for one in shown[: 2 * (3 + HELD_OUT)]:
        concept = PAIR.look if one.name.startswith("barred") else PAIR.move
        assert concept.trigger in one.caption
        assert one.class_caption == one.caption.replace(
            concept.trigger, {"frun": "plain", "mulf": "at rest"}[concept.trigger]
        )
    assert all(not one.class_caption for one in shown[2 * (3 + HELD_OUT) :])
    assert [one.is_known for one in shown] == [False] * 2 * (3 + HELD_OUT) + [True] * (len(shown) - 2 * (3 + HELD_OUT))


def test_one_alone_is_taught_as_it_is_beside_the_other():
    alone = Pair.of("barred+dive:move")
    assert alone.name == "barred+dive:move"
    shown = [one for one in PAIR.shown(3, 2, 1) if not one.name.startswith("barred")]
    assert alone.shown(3, 2, 1) == shown
    assert PairExam.of(alone, 3).all == PairExam.of(PAIR, 3).all


def graded(**scenes):
    """Of an exam of two prompts of a kind, what the judge says where these scenes are shown for a kind."""
    exam = PairExam.of(PAIR, 2, EXAM_SEED)
    shown = [scene for kind in KINDS for scene in scenes.get(kind, [scene for scene, _ in exam.asked[kind]])]
    return exam, grade_pair(exam, [judge(draw(scene)) for scene in shown], [1.0] * len(shown))


def test_what_is_shown_as_asked_is_right_in_all():
    _, grades = graded()
    assert grades == {
        "look": 1.0, "move": 1.0, "both": 1.0, "bled": 0.0, "leaked": 0.0, "kept": 1.0, "aligned": 1.0, "moves": 1.0,
        "moves_plain": 1.0,
    }  # fmt: skip


def test_bleed_and_leak_are_told_apart():
    exam, _ = graded()
    looks = [scene for scene, _ in exam.asked["look"]]
    plain = [scene for scene, _ in exam.asked["plain"]]
    _, grades = graded(look=[replace(looks[0], motion="dive"), looks[1]])
    assert (grades["look"], grades["bled"], grades["leaked"]) == (1.0, 0.25, 0.0)
    _, grades = graded(plain=[replace(plain[0], motion="dive"), plain[1]])
    assert (grades["bled"], grades["leaked"], grades["kept"]) == (0.0, 0.5, 0.5)
    _, grades = graded(look=[replace(scene, texture="plain") for scene in looks])
    assert (grades["look"], grades["aligned"]) == (0.0, 1.0)


def test_how_much_moves_is_that_of_the_movements_prompts():
    exam, _ = graded()
    verdicts = [judge(draw(scene)) for scene, _ in exam.all]
    amounts = [9.0, 9.0, 0.5, 0.7, 9.0, 9.0, 9.0, 9.0]
    assert grade_pair(exam, verdicts, amounts)["moves"] == pytest.approx(0.6)
