"""Previews of a recipe: its VAE decodes them, in the run itself (tests/core/train/test_previews.py)."""

from dataclasses import replace
from pathlib import Path

import pytest
from wan_train.core.cli.display import Display
from wan_train.core.errors import DatasetError
from wan_train.core.recipe.jobs import check_job
from wan_train.core.recipe.pipeline import cache, check_recipe, jobs, scan
from wan_train.core.recipe.recipe import recipe_from_tables, recipe_tables


def test_the_recipes_vae_is_named_where_there_are_previews(tables, tmp_path):
    display = Display()
    for every, vae in ((0, ""), (3, tables["models"]["vae"])):
        recipe = recipe_from_tables({**tables, "previews": {"every": every}}, tmp_path)
        made = jobs(recipe, check_recipe(recipe), cache(recipe, scan(recipe, display), display))
        assert {job.preview_vae for job in made.values()} == {vae}
        assert {job.previews.every for job in made.values()} == {every}


def test_a_recipe_knows_its_prompts_and_both_experts(tables, tmp_path):
    display = Display()
    samples = {"prompts": "a cat --d 7\n[trigger] runs", "negative": "blurry"}
    tables = {**tables, "previews": {"every": 3}, "dataset": {**tables["dataset"], "trigger_word": "sks"}}
    plain = recipe_from_tables(tables, tmp_path)
    recipe = recipe_from_tables({**tables, "samples": samples}, tmp_path)
    assert recipe_from_tables(recipe_tables(recipe), tmp_path) == recipe
    dataset = scan(recipe, display)
    made, without = (jobs(one, check_recipe(one), cache(one, dataset, display)) for one in (recipe, plain))
    models = {stage: job.model for stage, job in made.items()}
    for stage, job in made.items():
        assert job.key == without[stage].key
        assert [(p.asked.prompt, p.asked.seed) for p in job.data.prompts] == [("a cat", 7), ("sks runs", None)]
        texts = [text for p in job.data.prompts for text in (p.text, p.negative)]
        assert all(Path(text.path).is_file() for text in texts)
        assert len({text.key for text in texts}) == 3
        assert job.data.empty_text_key not in {text.key for text in texts}
        other = models["low" if stage == "high" else "high"]
        assert job.other_expert is not None
        assert (job.other_expert.path, job.other_expert.identity) == (other.path, other.identity)
        check_job(job)
        broken = replace(job.data.prompts[0], text=replace(job.data.prompts[0].text, path=str(tmp_path / "gone")))
        broken_job = replace(job, data=replace(job.data, prompts=(broken,)))
        with pytest.raises(DatasetError, match="what was cached of the sample prompt 1"):
            check_job(broken_job)
