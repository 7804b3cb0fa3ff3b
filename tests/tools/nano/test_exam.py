from dataclasses import replace

import numpy as np
import pytest
from wan_train.core.errors import ConfigError
from wan_train.tests.tools.nano.small import STAR
from wan_train.tools.nano.concepts import prompts
from wan_train.tools.nano.exam import Answers, Exam, answer, grade
from wan_train.tools.nano.judge import Verdict


def answers(exam, triggered, plain):
    clips = np.zeros((len(exam.triggered), 5, 64, 64, 3), dtype=np.uint8)
    return Answers(tuple(triggered), tuple(plain), clips)


def seen(scene, **changes):
    verdict = Verdict(scene.shape, scene.colour, scene.seen_motion, scene.texture, scene.size, scene.count)
    return replace(verdict, **changes)


def test_the_arithmetic_of_a_score():
    exam = Exam.of(STAR, 4)
    asked, plain = ([scene for scene, _ in part] for part in (exam.triggered, exam.plain))
    off = answers(
        exam,
        [seen(asked[0]), *(seen(scene, shape="circle") for scene in asked[1:])],
        [seen(plain[0], shape="nothing"), *(seen(scene, size="small", count=2) for scene in plain[1:])],
    )
    on = answers(
        exam,
        [
            seen(asked[0]),
            seen(asked[1], colour="nothing"),
            seen(asked[2], texture="cored"),
            seen(asked[3], shape="diamond"),
        ],
        [
            seen(plain[0], shape="star"),
            seen(plain[1], motion="nothing"),
            seen(plain[2], colour="nothing"),
            seen(plain[3]),
        ],
    )
    score = grade(exam, off=off, on=on)
    assert (score.learnt, score.leaked, score.bled, score.kept, score.kept_base) == (0.75, 0.25, 0.25, 0.25, 0.75)
    assert score.retention == pytest.approx(1 / 3)
    assert score.as_asked == {"shape": 0.75, "colour": 0.75, "motion": 1.0, "count": 1.0, "texture": 0.75}
    assert "concept 75% (without the LoRA 25%)" in str(score)
    assert "as asked 25% (without the LoRA 75%, so 33% is kept)" in str(score)
    assert np.isnan(replace(score, kept_base=0.0).retention)


def test_an_exam_asks_new_combinations_and_plain_ones():
    exam = Exam.of(STAR, 5)
    assert list(exam.triggered) == prompts(STAR, 5, exam.seed)
    assert all("zorp" not in prompt and scene.is_test for scene, prompt in exam.plain)
    with pytest.raises(ConfigError, match="at least 1 prompt, got 0"):
        Exam.of(STAR, 0)


def test_a_family_compared_with_itself_keeps_all(family):
    exam = Exam.of(STAR, 1)
    score = grade(exam, off=answer(family, exam), on=answer(family, exam))
    assert (score.learnt, score.kept) == (score.leaked, score.kept_base)
