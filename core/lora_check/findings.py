"""What a check says: a sentence, what to do about it, and how bad it is."""

from dataclasses import dataclass
from enum import IntEnum


class Weight(IntEnum):
    """How bad a finding is."""

    NO_EFFECT = 0  # as it is, nothing of the LoRA is seen
    WRONG = 1  # it has another effect than it was trained for
    HINT = 2  # worth knowing


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be."""

    weight: Weight
    sentence: str  # what is wrong, whole
    remedy: str  # what to do, whole

    def __str__(self) -> str:
        return f"{self.sentence} {self.remedy}".strip()
