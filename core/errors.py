"""Errors whose message is meant for the person at the screen: what, which value, which file, what to do."""


class WanTrainError(Exception):
    """Base of every error that a user can cause and mend. The message is one complete sentence."""

    def __init_subclass__(cls) -> None:
        cls.__module__ = "WanTrain"  # shown before the name; the host's name of this module is a path on the disk


class ConfigError(WanTrainError, ValueError):
    """A setting, or a combination of settings, that cannot work."""


class DatasetError(WanTrainError):
    """A folder, file or caption that cannot be trained on."""


class ModelFileError(WanTrainError):
    """A weight file that is missing, damaged, or not what was asked for."""


class RunError(WanTrainError):
    """A run folder that cannot be used: locked by another run, unreadable, unwritable, from a newer version."""
