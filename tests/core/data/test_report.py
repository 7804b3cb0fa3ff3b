"""Notes that differ by the file's name alone stand in one line."""

from wan_train.core.data.report import list_notes
from wan_train.core.data.types import Note


def note(name, reason="6 frames, fewer than 9", action="shortened"):
    return Note(name=name, action=action, reason=reason)


def test_equal_notes_are_one_line():
    many = [note(f"{i}.mp4") for i in range(24)]
    assert list_notes(many) == "- 24 files: shortened: 6 frames, fewer than 9: 0.mp4, 1.mp4, ... and 22 more"
    assert list_notes(many[:3]) == "- 3 files: shortened: 6 frames, fewer than 9: 0.mp4, 1.mp4, 2.mp4"
    assert list_notes(many[:1]) == "- 0.mp4: shortened: 6 frames, fewer than 9"


def test_without_a_limit_every_name_is_told():
    line = list_notes([note(f"{i}.mp4") for i in range(24)], limit=None)
    assert line.startswith("- 24 files: ")
    assert all(f" {i}.mp4" in line for i in range(24))


def test_others_stand_apart_in_order_and_the_limit_counts_lines():
    notes = [note("a"), note("b", action="skipped"), note("c", "7 frames, fewer than 9"), note("d")]
    assert list_notes(notes).splitlines() == [
        "- 2 files: shortened: 6 frames, fewer than 9: a, d",
        "- b: skipped: 6 frames, fewer than 9",
        "- c: shortened: 7 frames, fewer than 9",
    ]
    assert list_notes(notes, limit=1).splitlines()[1] == "- ... and 2 more (all of them are in the server's log)"


def test_files_that_are_called_the_same_differ_by_that_name_alone():
    empty = [note(f"a/p{i}.png", f"its caption file p{i}.txt is empty", "note") for i in range(24)]
    assert list_notes(empty) == (
        "- 24 files: note: its caption file NAME.txt is empty: a/p0.png, a/p1.png, ... and 22 more"
    )
    assert list_notes(empty[:1]) == "- a/p0.png: note: its caption file p0.txt is empty"
    masks = [note(f"{i}.png", f"its mask {i}-mask.png is not used: it has 4 frames", "note") for i in range(4)]
    assert list_notes(masks).startswith("- 4 files: note: its mask NAME-mask.png is not used: it has 4 frames: 0.png")


def test_other_words_and_numbers_stay():
    notes = [
        note("a.png", "a frame of a.clip.mp4 and of ba.png and 0.5", "note"),
        note("0.png", "it is 0.5 and a", "note"),
    ]
    assert list_notes(notes, None) == "\n".join(f"- {one}" for one in notes)
    assert list_notes([note("0.png", "scaled 0.5 times"), note("1.png", "scaled 0.5 times")]) == (
        "- 2 files: shortened: scaled 0.5 times: 0.png, 1.png"
    )
