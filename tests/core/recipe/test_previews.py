"""Previews of a recipe: its VAE decodes them, in the run itself (tests/core/train/test_previews.py)."""

from wan_train.core.cli.display import Display
from wan_train.core.recipe.pipeline import cache, check_recipe, jobs, scan
from wan_train.core.recipe.recipe import recipe_from_tables


def test_the_recipes_vae_is_named_where_there_are_previews(tables, tmp_path):
    display = Display()
    for every, vae in ((0, ""), (3, tables["models"]["vae"])):
        recipe = recipe_from_tables({**tables, "previews": {"every": every}}, tmp_path)
        made = jobs(recipe, check_recipe(recipe), cache(recipe, scan(recipe, display), display))
        assert {job.preview_vae for job in made.values()} == {vae}
        assert {job.previews.every for job in made.values()} == {every}
