"""What previews are made of: prompts, each with what it asks for itself."""

from dataclasses import dataclass

from ..errors import ConfigError
from ..facts import NUM_TIMESTEPS
from ..limits import check_number, check_texts
from ..methods import method_names
from ..paths import shown
from .previews import check_sample_size

MOST_PROMPTS = 64


@dataclass(frozen=True, kw_only=True)
class SamplePrompt:
    """One prompt. What is 0, None or empty is left to the options of the run (`previews`, `samples`)."""

    name: str  # "1", "2", ... or a nickname
    prompt: str
    negative: str | None = None
    width: int = 0
    height: int = 0
    frames: int = 0
    seed: int | None = None
    steps: int = 0
    cfg: float | None = None
    shift: float = 0.0
    sampler: str = ""
    scheduler: str = ""

    def __post_init__(self) -> None:
        check_texts("a sample prompt", words=(self.name,), captions=(self.prompt, self.negative or ""))
        where = f"the sample prompt {shown(self.name)}"
        check_sample_size(self.width, self.height, self.frames, f"{where}: ")
        check_number(self.steps, f"{where}: steps", 0, NUM_TIMESTEPS)
        check_number(self.shift, f"{where}: shift", 0, 10_000)
        if self.seed is not None:
            check_number(self.seed, f"{where}: seed", 0, 2**63 - 1)
        if self.cfg is not None:
            check_number(self.cfg, f"{where}: cfg", 0, 1000)
        for kind, name in (("sampler", self.sampler), ("scheduler", self.scheduler)):
            known = method_names(f"sample.{kind}s")
            if name and name not in known:
                raise ConfigError(f"{where}: {kind} is '{shown(name)}', not one of {', '.join(known)}.")
        if not self.prompt.strip():
            raise ConfigError(f"{where} is empty: write what it shall show, or leave it out.")
