"""Setups of other trainers, read as they are: their files become a recipe, a workflow and a report of every option."""
