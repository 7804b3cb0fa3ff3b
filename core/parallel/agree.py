"""What the ranks of a run must agree on."""


class ElsewhereError(Exception):
    """An act can't be finished, because memory ran out on another rank."""
