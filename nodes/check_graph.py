"""What the trainings of a workflow will take, and what is wrong with them, before any is run.

Training nodes of a prompt are followed back to their datasets and models, which are read as the nodes read them; nothing is
encoded, and no process is started. The page's Check asks for all of it, the nodes that encode whether it is worth while.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..core.data.counting import describe_lengths
from ..core.data.join import join
from ..core.data.report import describe_dataset
from ..core.data.sample_prompts import read_prompts
from ..core.data.scan import NotOpenedError, scan_folder
from ..core.data.types import Dataset
from ..core.devices import resolve_device
from ..core.errors import SAME_DATASET, ConfigError, WanTrainError
from ..core.launch.planned import places_of
from ..core.settings.dataset import Conditioning, DatasetOptions
from ..core.settings.job import CaptionText, Job, PreviewPrompt
from ..core.settings.previews import SamplePromptOptions
from ..core.train.build import PreviewModels, build_job, job_warnings
from ..core.train.forecast import PlanLine, disk_lines, expected_data, plan_line, spread_line
from ..core.train.length import job_length
from ..core.train.spread import RunPlace, build_over
from ..core.train.start import check_start
from . import host
from .advice import advising
from .data_nodes import CacheT5, DatasetFromFolder
from .follow import is_training
from .host import folders
from .inputs import check_known
from .join_nodes import number_of
from .model_nodes import LoadWanDiT
from .old_values import renew_prompt
from .sockets import DitHandle
from .train_nodes import STAGES, TrainLoRAStage, check_vae, other_warnings, stage_models, stage_settings
from .widgets import meanings

log = logging.getLogger(__name__)
_TRAIN = "TrainLoRAStage"
_NO_PLAN = PlanLine("memory and time: press Check")
_MOST_JOINED = 50  # joined datasets in each other: beyond, it is a circle
Found = dict[str, dict[str, Any]]


def check(prompt: Any, light: bool = False, is_gone: Callable[[], bool] = lambda: False) -> Found:
    """All trainings of a prompt, each on its node: {"text", "failed"}. ConfigError if it has none. `light`: see post_check.

    It ends early, with what was found, where the answer `is_gone`.
    """
    graph = _Graph(prompt, light)
    trainings = [key for key, node in graph.nodes.items() if node["class_type"] == _TRAIN]
    if not trainings and not light:
        raise ConfigError("the workflow has no training: add Train LoRA Stage, or unmute it.")
    jobs: dict[str, Job] = {}
    for key in trainings:
        if is_gone():
            break
        try:
            jobs[key] = graph.tell_training(key)
        except NotOpenedError:  # where it is light alone
            continue
        except _NodeError as error:
            if not (light and isinstance(error, _UnknownError)):
                graph.found[error.node] = {"text": error.sentence, "failed": True}
    _tell_lengths(graph.found, jobs)
    return graph.found


class Refusal(NamedTuple):
    """What is wrong, and the node whose settings mend it."""

    node: str
    title: str
    sentence: str


def why_not(prompt: Any, encoder: str) -> Refusal | None:
    """What is known to be wrong with a training that uses what the node `encoder` makes.

    None where nothing is, and where it can't be told before the run: then whoever asks goes on.
    """
    try:
        # ComfyUI runs nodes without gradients, and the plan times a backward where the device is not known yet.
        with torch.inference_mode(False), torch.enable_grad():
            graph = _Graph(prompt)
            for key in graph.trainings_with(encoder):
                host.free_vram()  # as before a training: its plan goes by what is free
                if found := graph.why_not(key):
                    return found
    except Exception:
        log.exception("the trainings of a workflow could not be checked")
    return None


def _tell_lengths(found: Found, jobs: Mapping[str, Job]) -> None:
    """How long the trainings are, and together: on each of them."""
    by_stage = {job.stage: job_length(job) for job in jobs.values()}
    whole = len(by_stage) == len(jobs)
    for key, job in jobs.items():
        lines = describe_lengths(by_stage if whole else {job.stage: by_stage[job.stage]})
        text = found[key]["text"]
        found[key]["text"] = "\n".join([text, *lines] if found[key]["failed"] else [*lines, text])  # why comes first


class _NodeError(Exception):
    """What is wrong, and the node whose settings mend it."""

    def __init__(self, node: str, sentence: str) -> None:
        super().__init__(sentence)
        self.node, self.sentence = node, sentence


class _UnknownError(_NodeError):
    """Nothing is wrong yet: it is not connected, or known in the run alone."""


@dataclass(frozen=True)
class _Latents:
    """What Cache Latents would make."""

    source: str  # node of the dataset
    dataset: Dataset
    conditioning: Conditioning
    has_vision: bool


class _Graph:
    """A prompt, followed from its trainings back to what they read."""

    def __init__(self, prompt: Any, light: bool = False) -> None:
        self.light = light
        renewed = renew_prompt({"prompt": prompt})["prompt"]
        nodes = renewed if isinstance(renewed, dict) else {}
        self.nodes = {key: node for key, node in nodes.items() if _is_node(node)}
        self.found: Found = {}
        self._datasets: dict[str, Dataset] = {}
        self._too_large: dict[str, str] = {}  # trainings that do not fit, and what would

    def tell_training(self, key: str) -> Job:
        """The job of a training, with what is to be said of it on its node."""
        dit = self._dit(self._source(key, "dit", "Load Wan DiT"))
        latents = self._latents(self._source(key, "latents", "Cache Latents"))
        prompts = self._prompts(self._source(key, "text", "Cache T5"), latents)
        other = self._dit(self._source(key, "other_dit", "Load Wan DiT")) if self._is_wired(key, "other_dit") else None
        settings = self._values(key)
        with _on(key), advising():
            check_known(TrainLoRAStage, settings)
            wanted = stage_settings(dit, settings)
            data = expected_data(latents.dataset, dit.info.config, latents.conditioning, has_vision=latents.has_vision)
            models = stage_models(STAGES[settings.get("stage", "")], dit, other, wanted)
            build = partial(
                build_job,
                models.model.info,
                replace(data, prompts=prompts),
                name=settings.get("lora_name", ""),
                stage=models.stage,
                trigger_word=latents.dataset.trigger_words,
                recovery_adapter=dit.recovery_adapter,
                previews_with=PreviewModels(other=None if models.other is None else models.other.info),
            )
            runs = host.runs_path()
            devices = places_of(wanted.device, host.auto_devices())[0].split(",")
            place = RunPlace(len(devices), device=devices[0], scratch=runs.parent / "cache")
            job = build_over(build, wanted, models.model.info, place)
            check_start(job, models.model.info)
            check_vae(job.previews, has_vae=self._is_wired(key, "vae"))
            plan = _NO_PLAN if self.light else _plan(job, models.model, devices, runs.parent / "cache")
            lines = [plan.text, *disk_lines(job, models.model.info.config, runs / job.name)]
            warnings = [f"- {sentence}" for sentence in [*job_warnings(job, wanted), *other_warnings(job, dit, other)]]
        self.found[key] = {"text": "\n".join([*lines, *warnings]), "failed": plan.to_mend}
        if plan.is_refused:
            self._too_large[key] = plan.text
        return job

    def trainings_with(self, encoder: str) -> list[str]:
        """Those that use what a node encodes."""
        trainings = (key for key, node in self.nodes.items() if node["class_type"] == _TRAIN)
        return [key for key in trainings if encoder in (self._wired(key, "latents"), self._wired(key, "text"))]

    def why_not(self, key: str) -> Refusal | None:
        """What is wrong with a training, as far as it is known before the run."""
        try:
            self.tell_training(key)
        except _UnknownError:
            return None
        except _NodeError as error:
            return Refusal(error.node, self._title(error.node), error.sentence)
        return Refusal(key, self._title(key), self._too_large[key]) if key in self._too_large else None

    def _title(self, key: str) -> str:
        node = self.nodes[key]
        meta = node.get("_meta")
        title = meta.get("title") if isinstance(meta, dict) else None
        return title if isinstance(title, str) and title else node["class_type"]

    def _dit(self, key: str) -> DitHandle:
        self._must_be(key, "LoadWanDiT", "Load Wan DiT")
        with _on(key):
            output = LoadWanDiT.execute(**self._values(key))
        self.found[key] = {"text": output.ui["text"][0], "failed": False}
        return output.args[0]

    def _latents(self, key: str) -> _Latents:
        self._must_be(key, "CacheLatents", "Cache Latents")
        source = self._source(key, "dataset", "Dataset from Folder")
        conditioning = self._values(key).get("condition_on", "none")
        return _Latents(source, self._dataset(source), conditioning, self._is_wired(key, "clip_vision"))

    def _prompts(self, key: str, latents: _Latents) -> tuple[PreviewPrompt, ...]:
        """Those of previews, which are not encoded yet."""
        self._must_be(key, "CacheT5", "Cache T5")
        if self._source(key, "dataset", "Dataset from Folder") != latents.source:
            with _on(key), advising():
                raise ConfigError("latents and captions are of two datasets.", about=SAME_DATASET)
        values, nothing = self._values(key), CaptionText(path="", key="")
        with _on(key), advising():
            check_known(CacheT5, values)
            options = SamplePromptOptions(
                prompts=values.get("sample_prompts", ""), negative=values.get("sample_negative", "")
            )
            asked = read_prompts(options, latents.dataset.trigger_words)
        return tuple(PreviewPrompt(asked=one, text=nothing, negative=nothing) for one in asked)

    def _dataset(self, key: str, depth: int = 0) -> Dataset:
        if key not in self._datasets:
            if self.nodes[key]["class_type"] == "JoinDatasets":
                dataset = self._joined(key, depth)
            else:
                self._must_be(key, "DatasetFromFolder", "Dataset from Folder")
                dataset = self._scanned(key)
            self._datasets[key] = dataset
            self.found[key] = {"text": describe_dataset(dataset), "failed": False}
        return self._datasets[key]

    def _joined(self, key: str, depth: int) -> Dataset:
        inputs = self.nodes[key]["inputs"]
        names = sorted((name for name in inputs if name.startswith("datasets.")), key=number_of)
        if depth > _MOST_JOINED:
            raise _NodeError(key, "the datasets are joined in a circle.")
        parts = [self._dataset(self._source(key, name, "Dataset from Folder"), depth + 1) for name in names]
        with _on(key):
            if not parts:
                raise ConfigError("datasets has no wire: connect at least one Dataset from Folder that is not muted.")
            return join(parts)

    def _scanned(self, key: str) -> Dataset:
        values = self._values(key)
        with _on(key):
            check_known(DatasetFromFolder, values)
            folder = folders.resolve_dataset_folder(values.pop("folder", ""))
            options = DatasetOptions(**meanings("DatasetFromFolder", values))
            places = [root for _, root in folders.dataset_roots()]
            index = host.cache_path() / "files.json"
            return scan_folder(folder, options, index_path=index, within=places, known_only=self.light)

    def _must_be(self, key: str, kind: str, title: str) -> None:
        if self.nodes[key]["class_type"] != kind:
            raise _UnknownError(key, f"Check knows {title} only, and can't follow what this node gives.")

    def _wired(self, key: str, name: str) -> str:
        """The node that an input is wired to; "" for none."""
        value = self.nodes[key]["inputs"].get(name)
        return value[0] if _is_link(value) and value[0] in self.nodes else ""

    def _is_wired(self, key: str, name: str) -> bool:
        return self._wired(key, name) != ""

    def _source(self, key: str, name: str, title: str) -> str:
        """The node that an input is wired to."""
        found = self._wired(key, name)
        if not found:
            raise _UnknownError(key, f"{name} has no wire: connect {title}.")
        return found

    def _values(self, key: str) -> dict[str, Any]:
        """What stands in the widgets of a node, or comes to them from a node that holds one value."""
        found: dict[str, Any] = {}
        for name, value in self.nodes[key]["inputs"].items():
            if not _is_link(value):
                found[name] = value
            elif name in _widgets(self.nodes[key]["class_type"]):
                found[name] = self._wired_value(key, name, value[0])
        return found

    def _wired_value(self, key: str, name: str, source: str) -> Any:
        inputs = self.nodes.get(source, {}).get("inputs", {})
        held = [value for own, value in inputs.items() if own in ("value", name) and not _is_link(value)]
        if len(held) != 1:
            raise _UnknownError(key, f"{name} comes over a wire, so that Check can't know it before the run.")
        return held[0]


class _on:  # noqa: N801 - reads as a word
    """Errors within are of this node."""

    def __init__(self, node: str) -> None:
        self.node = node

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, WanTrainError) and not isinstance(error, NotOpenedError):
            raise _NodeError(self.node, str(error)) from error


def _plan(job: Job, dit: DitHandle, devices: Sequence[str], scratch: Path) -> PlanLine:
    """The plan on the devices that the run would take."""
    busy = next((device for device in devices if is_training(device)), None)
    if busy:
        waits = f"the plan waits for the training that goes on, on {busy}: check again when it is over"
        return PlanLine(waits)
    device = resolve_device(devices[0])
    try:
        if len(devices) > 1:
            return spread_line(job, dit.info, len(devices), device, scratch)
        return plan_line(job, dit.info, device, scratch)
    except OSError as error:
        log.warning("the plan of %s can't be made: %s", job.name, error)
        return PlanLine(f"what is free of the memory is not known here ({error})")


def _widgets(kind: str) -> set[str]:
    """Names of the inputs of one of our nodes that hold a value where no wire is."""
    nodes = {
        _TRAIN: TrainLoRAStage,
        "DatasetFromFolder": DatasetFromFolder,
        "LoadWanDiT": LoadWanDiT,
        "CacheT5": CacheT5,
    }
    node = nodes.get(kind)
    if node is None:
        return set()
    schema = node.SCHEMA or node.define_schema()
    return {item.id for item in schema.inputs if hasattr(item, "default")}


def _is_node(node: Any) -> bool:
    return isinstance(node, dict) and isinstance(node.get("class_type"), str) and isinstance(node.get("inputs"), dict)


def _is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)
