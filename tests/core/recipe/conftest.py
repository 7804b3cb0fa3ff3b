"""The same small models, pictures and recipes as for the launch room."""

from wan_train.tests.core.launch.conftest import models, pictures, recipe, tables

__all__ = ["models", "pictures", "recipe", "tables"]
