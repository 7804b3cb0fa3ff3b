"""What is asked, and what becomes of the answer."""

import pytest
from wan_train.core.captioning.questions import caption_of, question_for
from wan_train.core.settings.captioning import CaptioningOptions


def test_each_kind_asks_for_what_its_lora_needs():
    asked = {
        kind: question_for(CaptioningOptions(kind=kind), is_clip=False)
        for kind in ("general", "character", "style", "motion")
    }
    assert len(set(asked.values())) == 4
    assert "clothes" in asked["character"]
    assert "Do not describe the face" in asked["character"]
    assert "do not list objects" in asked["style"]
    assert asked["motion"].startswith("Describe the movement")


def test_a_clip_is_called_one():
    asked = question_for(CaptioningOptions(), is_clip=True)
    assert asked.startswith("The pictures are frames of one video, in order. Describe this video")
    assert "what the camera does" in asked
    assert "camera does" not in question_for(CaptioningOptions(), is_clip=False)


def test_own_question_replaces_it_and_the_words_are_asked_for():
    options = CaptioningOptions(question="  What is this? ", must_say="zxq  person")
    assert question_for(options, is_clip=False) == "What is this? Use exactly these words: zxq person."


@pytest.mark.parametrize(
    ("answer", "caption"),
    [
        ("  A dog\n\nruns. ", "A dog runs."),
        ('"A dog runs."', "A dog runs."),
        ('"Run" says a dog called "Rex"', '"Run" says a dog called "Rex"'),
        ("<think>\nhm\n</think>\nA dog.", "A dog."),
        ("<think>\nnever ends", ""),
        ("Caption: **A dog.**", "A dog."),
        ("A\0 dog\x1b.", "A dog."),
        ("", ""),
    ],
)
def test_what_is_not_the_caption_goes(answer, caption):
    assert caption_of(answer, CaptioningOptions()) == caption


def test_an_answer_that_was_cut_ends_at_a_whole_sentence():
    assert caption_of("A dog runs. It is 3.5 m lo", CaptioningOptions(), was_cut=True) == "A dog runs."
    assert caption_of("👩\u200d🎨\x1b paints\u202e", CaptioningOptions()) == "👩\u200d🎨 paints"
    assert caption_of("狗在跑。它很", CaptioningOptions(), was_cut=True) == "狗在跑。"
    assert caption_of("A dog that runs and", CaptioningOptions(), was_cut=True) == "A dog that runs and"
    assert caption_of("A dog runs. It is brown", CaptioningOptions()) == "A dog runs. It is brown"


def test_the_words_are_put_in_front_once():
    options = CaptioningOptions(must_say="[trigger]")
    assert caption_of("a dog", options) == "[trigger], a dog"
    assert caption_of("A photo of [Trigger] at night", options) == "A photo of [Trigger] at night"
    assert caption_of("", options) == ""
