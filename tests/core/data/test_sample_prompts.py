"""Prompts of previews as people write them: lines, musubi-tuner's flags, a JSON library, the trigger word."""

import json

import pytest
from wan_train.core.data.sample_prompts import prompts_text, read_prompts, texts_of
from wan_train.core.errors import ConfigError
from wan_train.core.settings.previews import SamplePromptOptions
from wan_train.core.settings.samples import SamplePrompt


def read(text, trigger="", negative=""):
    return read_prompts(SamplePromptOptions(prompts=text, negative=negative), trigger)


def test_each_line_is_a_prompt_and_comments_are_none():
    found = read("a cat runs\n\n# not this\n  a dog sleeps  ")
    assert found == (SamplePrompt(name="1", prompt="a cat runs"), SamplePrompt(name="2", prompt="a dog sleeps"))


def test_a_line_may_end_with_flags():
    (one,) = read("a cat --w 832 --h 480 --f 33 --d 7 --s 20 --l 4.5 --fs 3 --n blurry, dark", negative="shared")
    assert one == SamplePrompt(
        name="1", prompt="a cat", negative="blurry, dark", width=832, height=480, frames=33, seed=7, steps=20, cfg=4.5,
        shift=3.0,
    )  # fmt: skip


def test_a_library_has_nicknames_and_entries_of_their_own():
    own = {"seed": 5, "cfg": 3, "negative": "", "sampler": "lcm", "scheduler": "beta"}
    cat, dog = read(json.dumps({"cat": "a cat", "dog": {"prompt": "a dog", **own}}), negative="shared")
    assert (cat.name, cat.prompt, cat.negative) == ("cat", "a cat", "shared")
    assert (dog.name, dog.seed, dog.cfg, dog.negative) == ("dog", 5, 3.0, "")
    assert [(one.sampler, one.scheduler) for one in (cat, dog)] == [("", ""), ("lcm", "beta")]


def test_a_json_list_is_a_list_of_prompts():
    text = json.dumps(["a cat", {"prompt": "[trigger] runs", "seed": 5, "name": "run"}])
    cat, run = read(text, trigger="sks")
    assert (cat.name, cat.prompt) == ("1", "a cat")
    assert (run.name, run.prompt, run.seed) == ("run", "sks runs", 5)
    assert [one.prompt for one in read("[trigger] runs\n[a cat]", trigger="sks")] == ["sks runs", "[a cat]"]


def test_the_trigger_word_takes_its_place():
    (one,) = read("[Trigger] runs", trigger="sks", negative="no [trigger]")
    assert (one.prompt, one.negative) == ("sks runs", "no sks")
    assert read("a cat", trigger="sks")[0].prompt == "a cat"
    with pytest.raises(ConfigError, match=r"sample prompt 1 contains \[trigger\], but no trigger word"):
        read("[trigger] runs")


def test_what_is_encoded_is_each_text_once():
    assert texts_of(read("a\nb\na", negative="n")) == ["a", "n", "b"]
    assert read("  \n ") == ()


@pytest.mark.parametrize(
    "entries",
    [
        [{"prompt": "a"}, {"prompt": "b"}],
        [{"prompt": "a", "name": "one", "seed": 3}, {"prompt": "two\nlines", "name": "two"}],
        [{"prompt": "a --w is no flag here", "negative": "n"}],
        [{"prompt": '["a sign", 3]'}],
    ],
)
def test_entries_survive_as_text(entries):
    back = read(prompts_text(entries))
    assert [one.prompt for one in back] == [entry["prompt"] for entry in entries]
    assert [one.seed for one in back] == [entry.get("seed") for entry in entries]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a cat --i picture.png", "line 1 of sample_prompts has --i, which is not known"),
        ("a cat --w wide", "line 1 of sample_prompts: width must be a whole number, got 'wide'"),
        ("ok\na cat --w 831", "width must be a multiple of 16"),
        ("a cat --f 32", "frames must be 4n"),
        ("--w 832", "sample prompt 1 is empty"),
        ('{"a": 3}', "sample_prompts.a must be a prompt"),
        ('{"a": {"prompt": "x", "sedd": 3}}', "sample_prompts.a has the unknown field 'sedd'"),
        ('{"a": {"prompt": "x", "sampler": "unipc"}}', "sample prompt a: sampler is 'unipc', not one of ddim, "),
        ('[{"prompt": "x", "scheduler": "euler"}]', "sample prompt 1: scheduler is 'euler', not one of beta, "),
        ('{"a": {"prompt": "x", "sampler": 3}}', "sample_prompts.a.sampler is 3; it must be a text"),
        ('{"a": ', "begins like JSON, but is not valid JSON"),
        ("{}", r"must be lines, a list \[\"prompt\", ...\], or a table"),
        ('["a", 3]', "prompt 2 of sample_prompts must be a prompt, or a table"),
        ('["a", "b"', "begins like JSON, but is not valid JSON"),
        ('[{"promt": "a"}]', "prompt 1 of sample_prompts has the unknown field 'promt'"),
        ('{"a": "one", "a": "two"}', "a name occurs twice, 'a'"),
        ('{"a": {"prompt": "x", "seed": 1, "seed": 2}}', "a name occurs twice, 'seed'"),
        (r'{"a": "half \ud800 letter"}', "holds the caption 'half . letter' with halves of letters"),
        (r'{"\udc80": "x"}', "holds the name '.' with halves of letters"),
        ("a \ud800 cat", "with halves of letters"),
        ("\n".join(["a"] * 65), "has 65 prompts"),
    ],
)
def test_what_is_no_prompt_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        read(text)


def test_a_negative_prompt_alone_is_refused():
    with pytest.raises(ConfigError, match="sample_negative is for sample_prompts"):
        read("", negative="blurry")
