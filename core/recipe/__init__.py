"""The job file for people, presets, and what is checked before a recipe runs."""
