"""Output preservation by the whole way: recipe, scan, caches, job, step; as the graph's nodes have it, too."""

import io

import pytest
from wan_train.core.cli.display import Display
from wan_train.core.data.store import text_key
from wan_train.core.errors import ConfigError
from wan_train.core.recipe.pipeline import NotEncodedError, cache, scan
from wan_train.core.recipe.recipe import recipe_from_tables
from wan_train.tests.core.recipe.test_several import further, make, several
from wan_train.tests.core.train.helpers import make_trainer

__all__ = ["further"]


def with_word(tables, weight=1.0):
    dataset = {**tables["dataset"], "class_word": "thing"}
    return {**tables, "dataset": dataset, "regularizers": {"output_preservation": weight}}


def test_captions_with_the_class_word_are_cached_beside_the_others(tables, tmp_path):
    job = make(with_word(tables), tmp_path)
    recipe = recipe_from_tables(with_word(tables), tmp_path)
    text = cache(recipe, scan(recipe, Display(io.StringIO()), report=False), Display(io.StringIO()), load=False).text
    for sample in job.data.samples:
        assert "shp" in sample.caption
        entry = text.by_caption[sample.caption.replace("shp", "thing")]
        assert [t.key for t in sample.class_texts] == [entry.key] == [text_key(entry.caption, text.encoder)]
    report = make_trainer(job).train_step().read()
    assert report.terms.keys() == {"flow", "output_preservation"}


def test_a_class_word_that_comes_later_is_encoded_and_nothing_else_changes(tables, tmp_path):
    plain = make(tables, tmp_path)
    recipe = recipe_from_tables(with_word(tables), tmp_path)
    dataset = scan(recipe, Display(io.StringIO()), report=False)
    with pytest.raises(NotEncodedError):
        cache(recipe, dataset, Display(io.StringIO()), load=False)
    later = make(with_word(tables), tmp_path)
    assert [(s.latents_key, s.text_key) for s in later.data.samples] == [
        (s.latents_key, s.text_key) for s in plain.data.samples
    ]
    assert later.key != plain.key
    assert make(with_word(tables, weight=0.0), tmp_path).key == plain.key


def test_a_regularization_set_beside_it_is_trained_and_takes_no_part(tables, further, tmp_path):
    tables = several(with_word(tables), further, loop={"batch_size": 5}, second={"regularization": True})
    job = make(tables, tmp_path)
    assert [bool(sample.class_texts) for sample in job.data.samples] == [True] * 3 + [False] * 2
    trainer = make_trainer(job)
    batch = trainer.batches.get(0)
    has = dict(zip(batch.names, batch.of_class.is_there.tolist(), strict=True))
    assert {name.startswith("further/") for name, there in has.items() if not there} == {True}
    assert sum(has.values()) == 3


def test_without_a_class_word_it_is_refused_before_the_start(tables, tmp_path):
    tables = {**tables, "regularizers": {"output_preservation": 1.0}}
    with pytest.raises(ConfigError, match="no caption has a class word"):
        make(tables, tmp_path)
