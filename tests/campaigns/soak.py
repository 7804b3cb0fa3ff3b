"""Hundreds of runs and stops in one ComfyUI: what its process holds must stay the same.

Of six tries five are runs and one is a stop. A stop starts a real training process, and comes either while that loads
its libraries or after its first step. One run in REAL_EVERY starts a real training process of one step; the others ask
for the newest finished run with another number of checkpoints to keep, which goes through all of the node, too, but
returns what is there. Every try also fetches the run's curve, as the page does.
"""

import json
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wan_train.tests.host.graphs import one_stage, own_seed
from wan_train.tests.host_server import Host
from wan_train.tools.server import HostError

from .campaign import Campaign, Report
from .hosts import Held, held_by, small_host

REAL_EVERY = 4
CLEAR_EVERY = 20  # tries after which the host forgets its finished prompts, as it would after 10,000
# How much more the last third of the tries may hold than the third before it.
MORE_MIB, MORE_FILES, MORE_THREADS = 8.0, 8, 8
WAIT_S = 600.0


def attack(tries: int, seed: int, place: Path) -> Report:
    """Make `tries` runs and stops; what the host holds is read after each."""
    report = Report()
    samples = []
    with small_host(place) as host:
        soak = _Soak(host, report, random.Random(seed))
        soak.train()  # models are loaded and libraries imported at the first use: no try
        samples.append(held_by(host))
        for number in range(tries):
            soak.make(number)
            report.tries += 1
            samples.append(held_by(host))
            last = samples[-1]
            with (place / "samples.txt").open("a") as file:  # for who watches a long form
                file.write(f"{time.strftime('%H:%M:%S')} {number} {last}\n")
            report.check(last.children == 0, f"try {number}: {last.children} processes were left behind")
            if number % CLEAR_EVERY == CLEAR_EVERY - 1:
                host.server.request("/history", {"clear": True})
    report.facts |= soak.counts
    compare(samples, report)
    return report


def compare(samples: Sequence[Held], report: Report) -> None:
    """Hold what was held in the last third of the tries against the third before it."""
    third = max(1, len(samples) // 3)
    for name, allowed in (("mib", MORE_MIB), ("files", MORE_FILES), ("threads", MORE_THREADS)):
        values = [getattr(sample, name) for sample in samples]
        before, after = statistics.median(values[-2 * third : -third]), statistics.median(values[-third:])
        told = f"{values[0]:.0f} at first, {before:.0f} in the middle third, {after:.0f} in the last, {max(values):.0f} at most"
        report.facts[name] = told
        report.check(after - before <= allowed, f"{name} grew: {told}")


class _Soak:
    """Makes the tries, each with a seed of its own."""

    def __init__(self, host: Host, report: Report, rng: random.Random) -> None:
        self.host, self.report, self.rng = host, report, rng
        self.seed = self.runs = 0
        self.finished: dict[str, Any] = {}  # settings of the newest finished run
        self.counts = {
            "real runs": 0,
            "runs that were finished": 0,
            "stops while loading": 0,
            "stops while training": 0,
        }

    def make(self, number: int) -> None:
        """One try."""
        if number % 6 == 2:
            self.stop(while_training=self.rng.random() < 0.5)
            return
        if self.runs % REAL_EVERY == REAL_EVERY - 1:
            self.train()
            self.counts["real runs"] += 1
        else:
            self.again()
            self.counts["runs that were finished"] += 1
        self.runs += 1

    def train(self) -> None:
        """A new run of one step, in a process of its own."""
        self.seed += 1
        self.finished = {"lora_name": "soak", "seed": self.seed, "steps": 1}
        self._succeeds(one_stage(**self.finished))

    def again(self) -> None:
        """The newest finished run, asked for in a way that the host has no answer in its cache to."""
        self._succeeds(one_stage(**self.finished, keep_last=4 + self.runs % REAL_EVERY))

    def stop(self, *, while_training: bool) -> None:
        """Press Stop on a long run."""
        self.seed += 1
        what = f"the stop of run {self.seed}"
        prompt = self.host.queue(
            one_stage(lora_name="stopped", seed=self.seed, steps=100_000, checkpoint_every=100_000)
        )
        folder = self._folder("stopped")
        if while_training:
            self._await(lambda: b'"event": "step"' in _bytes(folder / "events.jsonl"), what)
        self.host.interrupt(prompt)
        entry = self.host.wait(prompt, WAIT_S)
        kinds = [kind for kind, _ in entry["status"]["messages"]]
        self.report.check("execution_interrupted" in kinds, f"{what}: the host says {kinds}")
        if while_training:
            kept = list((folder / "checkpoints").glob("step-*"))
            self.report.check(len(kept) == 1, f"{what}: {len(kept)} checkpoints were kept")
        self.counts["stops while training" if while_training else "stops while loading"] += 1

    def _succeeds(self, prompt: dict[str, Any]) -> None:
        entry = self.host.run(prompt, WAIT_S)
        kind, data = entry["status"]["messages"][-1]
        message = data.get("exception_message", "")
        self.report.check(kind == "execution_success", f"run {self.seed}: {kind}: {message}")
        name = self._folder("soak").name
        state = self.host.server.request(f"/wan_train/runs/{name}")["state"]
        self.report.check(state == "finished", f"run {self.seed}: its curve says {state}")

    def _folder(self, name: str) -> Path:
        """The run folder of this name that has the newest seed."""
        runs = self.host.base / "output" / "wan_train" / "runs"

        def with_seed() -> list[Path]:
            jobs = runs.glob(f"{name}_*/job.json")
            return [job.parent for job in jobs if json.loads(job.read_text())["loop"]["seed"] == self.seed_of(name)]

        self._await(with_seed, f"the folder of {name}")
        return with_seed()[0]

    def seed_of(self, name: str) -> int:
        """The seed of the newest run of this name."""
        return own_seed(self.finished["seed"] if name == "soak" else self.seed)

    def _await(self, holds: Any, what: str) -> None:
        end = time.monotonic() + WAIT_S
        while not holds():
            if time.monotonic() > end:
                raise HostError(f"{what} did not come within {WAIT_S:.0f} s.")
            self.host.server.check_alive()
            time.sleep(0.05)


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


CAMPAIGN = Campaign(attack=attack, short=3, long=600, needs_host=True)
