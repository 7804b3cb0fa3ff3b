"""The class word: which captions are made with it, that they are encoded, and who takes no part."""

from dataclasses import replace

import pytest
from wan_train.core.data.class_word import with_class_word
from wan_train.core.data.encode import cache_latents, cache_text
from wan_train.core.data.join import join
from wan_train.core.data.pairs import data_spec
from wan_train.core.data.report import describe_dataset
from wan_train.core.data.scan import scan_folder
from wan_train.core.data.store import Store
from wan_train.core.errors import ConfigError
from wan_train.core.settings.dataset import DatasetOptions
from wan_train.tests.core.data.test_encode import CharEncoder, PoolVAE


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("ohwx walks, ohwx runs", "person walks, person runs"),
        ("a photo of ohwx.", "a photo of person."),
        ("ohwx and ohwxy", "person and ohwxy"),
        ("many ohwxs", "many persons"),
        ("ohwx的肖像 and ohwxy", "person的肖像 and ohwxy"),
        ("OHWX walks", ""),
        ("somebody walks", ""),
        ("", ""),
    ],
)
def test_a_caption_with_the_class_word(caption, expected):
    assert with_class_word(caption, "ohwx", "person") == expected


def test_words_are_no_patterns():
    assert with_class_word("a (x)+ dog", "(x)+", r"\1 dog") == r"a \1 dog dog"
    assert with_class_word("a dog", "", "dog") == with_class_word("x", "x", "") == ""


@pytest.fixture
def folders(tmp_path, make):
    for name, caption in (("shots", "[trigger] walks"), ("plain", "a person")):
        folder = tmp_path / name
        folder.mkdir()
        for file in ("a", "b"):
            make.image(folder / f"{file}.png", (64, 64))
            (folder / f"{file}.txt").write_text(f"{caption}, {file}")
    return tmp_path


def scan(folder, **options):
    return scan_folder(folder, DatasetOptions(**{"width": 64, "height": 64, "num_frames": 1, **options}))


def data_of(dataset, tmp_path):
    store = Store(tmp_path / "cache")
    text, _ = cache_text(dataset.captions, CharEncoder(), store)
    return data_spec(cache_latents(dataset, PoolVAE(), store)[0], text), text


def test_class_captions_are_encoded_and_come_to_the_samples(folders):
    dataset = scan(folders / "shots", trigger_word=" ohwx ", class_word=" young  person ")
    assert dataset.captions == (
        "ohwx walks, a",
        "young person walks, a",
        "ohwx walks, b",
        "young person walks, b",
    )
    data, text = data_of(dataset, folders)
    for sample, file in zip(data.samples, "ab", strict=True):
        entry = text.by_caption[f"young person walks, {file}"]
        assert [(t.path, t.key) for t in sample.class_texts] == [(entry.path, entry.key)]
        assert entry.path in sample.paths


def test_further_captions_have_theirs_in_the_same_order_or_none_has(folders):
    dataset = scan(folders / "shots", trigger_word="ohwx", class_word="person")
    first, second = dataset.samples
    with_more = replace(first, file=replace(first.file, more_captions=("ohwx", "here is ohwx")))
    lacking = replace(second, file=replace(second.file, more_captions=("nobody",)))
    data, text = data_of(replace(dataset, samples=(with_more, lacking)), folders)
    captions = {entry.key: entry.caption for entry in text.entries}
    assert [captions[t.key] for t in data.samples[0].class_texts] == ["person walks, a", "person", "here is person"]
    assert data.samples[1].class_texts == ()
    assert len(data.samples[1].more_texts) == 1


def test_regularization_sets_and_datasets_without_a_class_word_have_none(folders):
    regular = {"regularization": True, "trigger_word": "ohwx", "class_word": "person"}
    joined = join(
        [
            scan(folders / "shots", trigger_word="ohwx", class_word="person"),
            scan(folders / "shots", trigger_word="zkw"),
            scan(folders / "plain", **regular),
        ]
    )
    data, _ = data_of(joined, folders)
    assert [len(sample.class_texts) for sample in data.samples] == [1, 1, 0, 0, 0, 0]
    assert "trigger word ohwx; class word person" in describe_dataset(joined)
    assert any("class_word has no effect with regularization on" in s for s in DatasetOptions(**regular).warnings())


def test_without_a_class_word_nothing_changes(folders):
    plain = scan(folders / "shots", trigger_word="ohwx")
    assert plain.captions == ("ohwx walks, a", "ohwx walks, b")
    assert data_of(plain, folders)[0].samples[0].class_texts == ()
    other = scan(folders / "shots", trigger_word="ohwx", class_word="person")
    assert other.digest != plain.digest
    assert [s.content_key for s in other.samples] == [s.content_key for s in plain.samples]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"class_word": "person"}, "class_word is 'person', but no trigger word is set"),
        ({"class_word": "ohwx ", "trigger_word": "ohwx"}, "class_word is 'ohwx', as the trigger word is"),
    ],
)
def test_a_class_word_that_replaces_nothing_is_refused(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        DatasetOptions(**options)


def test_captions_that_were_not_encoded_with_it_are_told(folders):
    store = Store(folders / "cache")
    text, _ = cache_text(scan(folders / "shots", trigger_word="ohwx").captions, CharEncoder(), store)
    latents, _ = cache_latents(scan(folders / "shots", trigger_word="ohwx", class_word="person"), PoolVAE(), store)
    with pytest.raises(ConfigError, match=r"the caption of a\.png has no text embedding"):
        data_spec(latents, text)
