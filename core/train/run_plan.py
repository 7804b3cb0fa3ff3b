"""The plan of one run: chosen and told before the model is loaded, put on it, and left for a leaner one if memory runs out."""

from dataclasses import replace
from pathlib import Path

import torch

from ..errors import ConfigError, RunError
from ..facts import EXPERTS, Expert
from ..gpu_limit import lift, limit
from ..memory.adamw import hold_state
from ..memory.shared import sharing_problem
from ..parallel.agree import Votes, in_turn
from ..parallel.world import ALONE, World
from ..plan.advice import explain, what_would_fit
from ..plan.alike import alike
from ..plan.alternating import beside_another, two_bases
from ..plan.card import common_card, measure_free
from ..plan.choice import Choice
from ..plan.constants import constants
from ..plan.decision import decide, joined_buckets
from ..plan.learnt import LearnCosts, Learnt
from ..plan.link import link_of
from ..plan.measure import NUM_MEASURED, WARM_UP, AtTheEnd, Measure
from ..plan.overhead import OtherPrograms
from ..plan.plan import Gpus
from ..plan.planner import Planner
from ..plan.planning import budget_bytes, plan_of, within
from ..plan.probe import DeviceProbe
from ..plan.recovery import Descent, Recovery, step_down, tell_choice
from ..plan.shortages import Met
from ..plan.sizes import Sizes
from ..plan.step_memory import DeviceCounters, StepMemory
from ..serial import to_dict
from ..settings.job import Job
from ..settings.memory import MemoryOptions
from ..settings.plain import PLAIN
from ..shortage import Shortage
from ..wan.checkpoint import CheckpointInfo
from ..wan.model import call_block
from .clock import Clock
from .events import EventWriter
from .features import Features, apply_features, make_masters
from .kept_plan import PlanOfBefore
from .loop import Callback
from .parked import ParkedModel
from .prepare import Prepared, hold_bases, prepare, timed


class RunPlan:
    """Decides how a run holds its model, and owns what was put on it, which changes when memory runs out.

    With the option `plan` "auto", on a GPU or within a budget, that is the fastest way that fits. Else it is what the job
    says, and nothing is measured before memory has run out.
    """

    def __init__(
        self,
        job: Job,
        info: CheckpointInfo,
        device: torch.device,
        *,
        events: EventWriter,
        scratch: Path,
        others: OtherPrograms | None = None,
        world: World = ALONE,
        other_is_there: bool | None = None,
    ):
        """Decides and chooses. ConfigError for a job that can't be trained on `device`, or for which no plan fits the GPU.

        `info`: the job's model file, checked (see `check_job`). `scratch`: the folder for what may be used again and may be
        deleted, and for what is learnt of the device. `others`: what else was in its memory before this process used it.
        `world`: the ranks that train together, whose plans are of one kind. `other_is_there`: whether the run that this one
        takes turns with has been on the device before; None: it takes turns with none.
        """
        self._world = world
        holders = world.local_size if len(world.machine) > 1 and not sharing_problem(world) else 1
        self._gpus = Gpus(world.size, world.context, holders)
        self._device, self._events, self._scratch = device, events, scratch
        self.step_memory = StepMemory(DeviceCounters(device))
        used_by_others = others.used(device) if others is not None else None
        self._learnt = Learnt(device, scratch, used_by_others, ranks=world.size)
        self._probe: DeviceProbe | None = None
        self._told: set[str] = set()
        self._other_is_there = other_is_there
        self._parked = ParkedModel(device, scratch / "blocks")
        self._job = job
        self._before = PlanOfBefore(job, device, events.path.parent, world=world, warn=self._warn)
        asked = self._before.asked(job)
        with timed("Trying the kernels, or the compiler, and the kinds of attention"):
            self._decision = in_turn(world, lambda: decide(asked, info, device, scratch, context=world.context))
        if world.size > 1:
            self._decision = alike(replace(self._decision, joined=1), world, job.model.precision)
        self._decision = self._before.settled(self._decision)
        for sentence in self._decision.warnings:
            self._warn(sentence)
        if job.parallel.base == "sharded" and len(world.machine) == 1:
            self._warn("A sharded base has no effect with one GPU on a machine: there it is whole.")
        self._planner = self._plan_ahead()
        self._prepared: Prepared | None = None
        self._features = Features()
        self._optimizer: torch.optim.Optimizer | None = None
        chosen = self._choose() if world.is_first else None
        self._planner, choice = world.from_first((self._planner, chosen) if world.is_first else None)
        self._begun = choice
        votes = Votes(world, talks_within=self.talks_within)
        self._descent = Descent(choice, self, events=events, device=device, votes=votes)

    @property
    def device(self) -> torch.device:
        """Where the run trains."""
        return self._device

    @property
    def sizes(self) -> Sizes:
        """Of the model."""
        return self._decision.info.config

    @property
    def joined(self) -> int:
        """How many batches of a step go through the model together."""
        return self._decision.joined

    @property
    def is_sharded(self) -> bool:
        """Whether the frozen base lies spread over the ranks, so that all of them run each block at the same time."""
        return self._world.size > 1 and self._job.parallel.base == "sharded"

    @property
    def link(self) -> float:
        """Bytes per second between the ranks; 0 where that was not measured."""
        if self._planner is None or self._job.memory.deterministic:  # it decides in which pieces gradients are sent
            return 0.0
        return self._planner.card.link

    @property
    def talks_within(self) -> bool:
        """Whether the ranks talk within a forward."""
        return self._world.context > 1 or self.is_sharded

    def load(self) -> Prepared:
        """The model, as the plan has it, or the first leaner one with which it can be loaded."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()  # of what was measured
        self._limit()
        self._prepared = self._descent.reach(self._load, None)
        self._features = self._prepared.features
        self.step_memory.begin()
        return self._prepared

    def recovery(self, optimizer: torch.optim.Optimizer) -> Recovery:
        """For `trainer.attempt`; from here on the plan has its way with the state of `optimizer` too."""
        self._optimizer = optimizer
        loaded = self._descent.choice
        self._descent.reach(lambda choice: self._hold_state(choice) if choice is loaded else self._apply(choice), None)
        return Recovery(self._descent, apply=self._apply, optimizer=optimizer)

    def callbacks(self) -> list[Callback]:
        """What compares the first steps with the plan, where there is one and the device counts its memory.

        Of a run over several GPUs, rates and sizes are not kept: they are another machine's than those of runs on one.
        """
        peak = self.step_memory.allocated
        if self._planner is None or not self._world.is_first:
            return []
        steps = self._job.loop.steps
        found: list[Callback] = [AtTheEnd(steps, self._remember_success)]
        if self._world.size > 1:
            return found
        is_first_turn = self._learnt.others is not None or self._device.type != "cuda"
        found.append(
            LearnCosts(
                self._learnt,
                self._planner,
                lambda: self._descent.choice,
                steps=steps,
                peak=peak,
                is_first_turn=is_first_turn,
            )
        )
        is_disturbed = 0 < self._job.previews.every <= WARM_UP + NUM_MEASURED  # the step after a preview takes longer
        if peak() is not None and not is_disturbed:
            found.append(Measure(self._planner, lambda: self._descent.choice, folder=self._scratch, peak=peak))
        return found

    def ended(self, clock: Clock) -> None:
        """The LoRA is there, and what was beside the steps is known, which the next run's plan reckons with.

        Of previews at the end, beside which the last checkpoint is written, the end says nothing of a run without.
        """
        if self._planner is None or self._world.size > 1:
            return
        end = None if self._job.previews.every else clock.since_last_step
        known = self._descent.choice is self._begun  # else they were made under different plans
        validations, previews = (clock.validations, clock.previews) if known else ([], [])
        self._learnt.remember_beside(self._planner, self._begun, end, validations=validations, previews=previews)

    def make_room(self) -> None:
        """Between two steps: free the GPU memory that only a step needs; the next step takes it again."""
        self._features.make_room()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def leave(self) -> bool:
        """Between two steps: leave the device's memory to another run, all but the adapter's and the optimizer's.

        False where the weights can't wait elsewhere: that is told, and all is as it was. `come_back` undoes it.
        """
        self.make_room()
        if self._keeps_weights:
            return True
        assert self._prepared is not None, "no step is made before the model is loaded"
        streamer = self._features.streamer
        swapped = {} if streamer is None else dict(streamer.masters)
        self._take_off()
        try:
            self._parked.leave(self._prepared.model, swapped)
        except (ConfigError, RunError, OSError) as error:
            self._warn(f"The device is not handed over, since the weights can't wait elsewhere: {error}")
            self._put_back(self._descent.choice)
            return False
        return True

    def come_back(self, step: int) -> None:
        """After `leave`: everything on the device again, or under a leaner plan if that is short of memory by now."""
        if self._keeps_weights:
            return
        self._limit()
        left = self._descent.choice
        self._descent.reach(lambda choice: self._put_back(choice) if choice is left else self._apply(choice), step)

    def use_expert(self, expert: Expert | None) -> None:
        """Have the weights of this expert in the model, of a run that trains one LoRA through both; None: of its only one."""
        if expert is None:
            return
        bases, number = None if self._prepared is None else self._prepared.bases, EXPERTS.index(expert)
        assert bases is not None, "a run of one model has no other"
        if number == bases.present:
            return
        if self._keeps_weights:
            self._features.make_room()  # graphs know the weights by their addresses
        bases.use(number, self._features.streamer)

    def close(self) -> None:
        """Take everything off the model, which is not called any more."""
        self._take_off()
        lift(self._device)

    def _limit(self) -> None:
        """Of the budget, and on Windows of what is free now."""
        memory = self._job.memory
        overhead = constants().overhead_vram if self._probe is None else self._probe.card.overhead
        limit(self._device, budget_bytes(memory, overhead) if memory.budget_gb else None)

    def step_down(self, failed: Choice, shortage: Shortage) -> Choice | None:
        """A choice that takes less than `failed`, of what is free now; see `core.plan.recovery`. All ranks call it."""
        self._limit()
        planner = self._planner or replace(self._measure(), options=MemoryOptions())
        free = planner.card.free
        now = within(measure_free(planner.card, self._device), self._job.memory)
        planner = replace(planner, card=common_card(self._world.tell(now), self._world.local_size))
        found = self._below(planner, failed, shortage, free) if self._world.is_first else None
        self._planner, lower = self._world.from_first(found)
        return lower

    def keep_for_next(self, failed: Choice) -> bool:
        """Keep for the next start that memory did not suffice for `failed`; whether it will choose less. On any rank."""
        planner = self._planner
        if planner is None:
            return False
        _, lower = self._below(planner, failed, "vram", planner.card.free)
        if lower is not None:
            self._before.forget("its plan took too much memory")
        return lower is not None

    def _below(self, planner: Planner, failed: Choice, shortage: Shortage, free: int) -> tuple[Planner, Choice | None]:
        """The planner and its next choice after `failed`, for which there were `free` bytes at the start."""
        described = failed if failed.estimates else planner.describe(failed.plan)
        planner, lower = step_down(planner, described, shortage)
        if lower is not None and shortage == "vram":
            planner = self._learnt.remember_shortage(self._job, planner, described, lower, free)
        return planner, lower

    def explain(self, choice: Choice) -> str:
        """The choice in one line."""
        assert self._planner is not None, "a choice of no planner has nothing to tell"
        return explain(self._planner, choice, steps=self._job.loop.steps)

    def _plan_ahead(self) -> Planner | None:
        """A planner; None where the plan is not chosen at the start (plan manual, or the CPU without a budget)."""
        memory = self._job.memory
        if memory.plan == "manual" or not (self._device.type == "cuda" or memory.budget_gb):
            for sentence in _without_effect(memory, self._device):
                self._warn(sentence)
            return None
        try:
            planner = self._measure()
            if self._job.turns is not None:
                return two_bases(planner, self._job.turns.every)
            if self._other_is_there is None:
                return planner
            with timed("Planning for turns with another run"):
                return beside_another(planner, self._job.alternate_every, is_there=self._other_is_there)
        except OSError as error:
            self._warn(f"{error} No plan can be chosen without: the run goes on with its memory options as they are.")
            return None

    def _measure(self) -> Planner:
        """A planner with what the device can do now, and what earlier runs have shown of it; of all ranks the least."""
        with timed("Measuring the device"):
            link = link_of(self._world, self._device, self._scratch)  # first: what it takes is not free any more
            self._probe = in_turn(self._world, lambda: self._learnt.probe(self._decision))
        planner = self._learnt.planner(self._job, self._decision, self._probe, self._gpus)
        card = replace(common_card(self._world.tell(planner.card), self._world.local_size), link=link)
        return replace(planner, plan=plan_of(self._job, self._decision, self._world), card=card)

    @property
    def _keeps_weights(self) -> bool:
        """Whether they stay on the device in the other run's turn. Main memory is none that can be left."""
        return self._device.type != "cuda" if self._planner is None else self._planner.keeps_weights

    def _put_back(self, choice: Choice) -> None:
        """The weights that had left, and the features of `choice`, under which they had left."""
        assert self._prepared is not None, "only what was there can leave"
        self._parked.come_back()
        model = self._prepared.model
        model.run_block = call_block
        self._features = apply_features(
            model,
            choice.plan,
            self._decision,
            tell=self._warn,
            scratch=self._scratch,
            kept=choice.kept,
            masters=self._parked.swapped or None,
            world=self._world,
        )

    def _remember_success(self) -> None:
        assert self._planner is not None, "only what was planned is watched"
        self._learnt.remember_success(self._job, self._planner, self._descent.choice)

    def _choose(self) -> Choice:
        """The plan to begin with, told where it was chosen."""
        planner, held = self._planner, self._before.held
        if planner is None:
            plan = plan_of(self._job, self._decision, self._world)
            return Choice(plan, {}, 0, 0, 0.0) if held is None else Choice(held.plan, held.kept, 0, 0, 0.0)
        if held is not None:
            choice = replace(planner.describe(held.plan, held.kept), plan=held.plan, kept=held.kept)
            self._tell(planner, choice)
            return choice
        with timed("Choosing a plan"):
            choice = planner.choose() or replace(planner, met=Met()).choose()  # what was short once may suffice now
            if self._decision.joined > 1:
                planner, choice = self._joined_or_apart(planner, choice)
        if choice is None:
            advice = what_would_fit(planner)
            if self._device.type != "cpu":
                raise ConfigError(f"{advice} To try all the same, set plan to manual.")
            choice = planner.leanest()
            self._warn(f"{advice} On the CPU the run goes on with the leanest plan.")
        self._tell(planner, choice)
        return choice

    def _tell(self, planner: Planner, choice: Choice) -> None:
        measured = {"card": to_dict(planner.card), "task": to_dict(planner.task)}  # for `wantrain doctor --report`
        tell_choice(self._events, choice, self.explain(choice), overhead=planner.card.overhead, **measured)

    def _joined_or_apart(self, joined: Planner, choice: Choice | None) -> tuple[Planner, Choice | None]:
        """What is faster of batches that go through the model together, which takes more memory, and one after another."""
        loop = self._job.loop
        apart = replace(
            joined,
            task=replace(joined.task, accumulation=loop.gradient_accumulation),
            buckets=joined_buckets(self._job, 1),
        )
        other = apart.choose()
        if choice is not None and (other is None or choice.seconds < other.seconds):
            return joined, choice
        self._decision, self._planner = replace(self._decision, joined=1), apart
        return apart, other

    def _load(self, choice: Choice) -> Prepared:
        room = 0 if self._planner is None else max(self._planner.card.free - choice.vram, 0)
        prepared = prepare(
            self._job,
            self._device,
            decision=replace(self._decision, room=room),
            plan=choice.plan,
            tell=self._warn,
            scratch=self._scratch,
            kept=choice.kept,
            world=self._world,
        )
        self._hold_bases(prepared, prepared.features)
        self._before.keep(self._decision, choice)
        return prepared

    def _hold_bases(self, prepared: Prepared, features: Features) -> None:
        """Of two experts that share the adapter, after the features were put on."""
        if prepared.bases is not None:
            hold_bases(prepared.bases, features, self._device, keeps_weights=self._keeps_weights, scratch=self._scratch)

    def _apply(self, choice: Choice) -> None:
        """Put the choice on the model in the place of what is there."""
        assert self._prepared is not None, "no step is made before the model is loaded"
        model, told = self._prepared.model, {"scratch": self._scratch, "tell": self._warn}
        maker = make_masters(choice.plan, len(model.blocks), self._device, world=self._world, **told)
        with maker.together():
            self._take_off()
            self._hold_state(choice)
            model.run_block = call_block
            self._features = apply_features(
                model, choice.plan, self._decision, kept=choice.kept, masters=maker, world=self._world, **told
            )
        self._hold_bases(self._prepared, self._features)
        self._before.keep(self._decision, choice)

    def _hold_state(self, choice: Choice) -> None:
        """Put the optimizer's state where the choice has it."""
        assert self._optimizer is not None, "no step is made before the optimizer is"
        if not hold_state(self._optimizer, offloaded=choice.plan.offload_optimizer):
            self._warn(f"offload_optimizer has no effect on {self._job.optimizer.name}, whose state stays on the GPU.")

    def _take_off(self) -> None:
        self._features.reset()
        self._features.close()
        self._features = Features()

    def _warn(self, sentence: str) -> None:
        """Once, whatever is tried again."""
        if sentence not in self._told:
            self._told.add(sentence)
            self._events.write("warning", message=sentence)


def _without_effect(memory: MemoryOptions, device: torch.device) -> list[str]:
    """Options that play no part where the plan is not chosen."""
    found = []
    if memory.budget_gb and device.type != "cuda":
        found.append("budget_gb has no effect on the CPU with plan manual.")
    is_plain = memory.stream_from in (None, PLAIN["stream_from"])
    if memory.plan == "auto" and not memory.streamed_blocks and not is_plain:
        found.append("stream_from has no effect on the CPU without budget_gb: no block is streamed.")
    return found
