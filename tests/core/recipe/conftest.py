"""Miniature models, pictures and recipes over them."""

from wan_train.tests.core.launch.fixtures import models, pictures, recipe, tables, wantrain

__all__ = ["models", "pictures", "recipe", "tables", "wantrain"]
