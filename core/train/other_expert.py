"""An expert that is read from its file while it runs, for previews: the one that a run does not train, or its own.

B samples, C channels, F H W latent frames, height, width, L video tokens, S text tokens, D width.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from glob import escape
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from ..adapters.apply import attach
from ..adapters.formats import LoraModule
from ..adapters.other_files import OtherModule, read_adapter
from ..adapters.setup import write_adapter
from ..adapters.start_from import adapter_identity
from ..adapters.transfer import model_shapes, transfer_report
from ..errors import ConfigError, ModelFileError
from ..facts import PATCH
from ..memory.precision import native_dtype
from ..paths import shown
from ..plan.beside import bytes_to_stay
from ..safe_json import as_table, read_object
from ..sample.previews import reads_own
from ..settings.job import Job, ModelSpec, Stage
from ..settings.previews import PreviewOptions
from ..wan.checkpoint import CheckpointInfo, hints_expert, inspect
from ..wan.loading import transformer_bytes, transformer_parts
from ..wan.model import WanTransformer
from .checkpoints import ADAPTER
from .result import RESULT
from .run_folder import RunFolder

OTHER: Mapping[Stage, Stage] = {"high": "low", "low": "high", "both": "low"}  # both: beside the high noise expert


class OtherExpert:
    """Runs a model of which never more than one block is in memory: each is read when its turn comes, and let go.

    So it adds a block of the GPU's memory to what a run holds, and reads the file once for each sampling step. Where there is
    `room` for the whole model, it is read once, and stays until `let_go`.
    """

    def __init__(
        self,
        info: CheckpointInfo,
        device: torch.device,
        lora: Path | None = None,
        *,
        beside: Sequence[tuple[Path, float]] = (),
        room: Callable[[torch.device], int] | None = None,
    ) -> None:
        """`lora`: put on at strength 1; `beside`: more, each with its strength. WanTrainError for one that can't be read or
        does not fit. `room`: bytes of the device that tensors may still take; None: the model never stays."""
        self._info, self._device, self._dtype = info, device, native_dtype(device)
        self._room, self._is_staying = room, False
        self._model: WanTransformer | None = None  # the whole of it, where it stays
        self._loras: list[tuple[dict[str, LoraModule | OtherModule], float]] = []
        self._skipped: Collection[int] = ()
        self._lora_bytes = 0
        for path, strength in (*([(lora, 1.0)] if lora else []), *beside):
            file = read_adapter(path)
            placed = transfer_report(file, model_shapes(info.config)).placed
            if not placed:
                raise ConfigError(f"nothing of {shown(path.name)} fits {shown(info.path.name)}: choose another file.")
            self._loras.append(({name: file.modules[name] for name in placed}, strength))
            self._lora_bytes += path.stat().st_size

    @contextmanager
    def without_blocks(self, blocks: Collection[int]) -> Iterator[None]:
        """Within it these blocks hand on what came into them."""
        self._skipped = blocks
        try:
            yield
        finally:
            self._skipped = ()

    def velocity(self, given: Mapping[str, Tensor], latents: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        """latents [B, C, F, H, W], timesteps [B], context [B, S, D] -> [B, C, F, H, W] float32.

        `given`: what an image-to-video model is given, of one sample. All B are run by a block before it is let go, one by
        one.
        """
        rows = {name: tensor.expand(latents.shape[0], *tensor.shape[1:]) for name, tensor in given.items()}
        if self._model is not None:
            return self._model(latents, timesteps, context, **rows).float()
        stays = self._is_staying = self._can_stay(latents)
        with closing(transformer_parts(self._info, dtype=self._dtype, device=self._device)) as parts:  # type: ignore[type-var]
            _, model = next(parts)
            self._put_on(model, lambda name: not name.startswith("blocks."))
            model.run_block = partial(self._read_and_run, parts, stays)
            found = model(latents, timesteps, context, **rows).float()
        if stays:
            numbers = {block: index for index, block in enumerate(model.blocks)}
            model.run_block = lambda block, x, *others: self._run(numbers[block], block, x, *others)
            self._model = model
        return found

    @property
    def stays(self) -> bool:
        """Whether the whole model is on the device, or is just coming."""
        return self._is_staying

    def let_go(self) -> bool:
        """The model's memory is free again, and it does not stay a second time; whether it had any."""
        had, self._is_staying, self._model, self._room = self._is_staying, False, None, None
        return had

    def _can_stay(self, latents: Tensor) -> bool:
        """Whether there is room for the whole model, and for what both experts compute with of one video."""
        if self._room is None:
            return False
        config, size = self._info.config, self._dtype.itemsize
        weights = transformer_bytes(config, self._dtype) + self._lora_bytes
        tokens = latents[0, 0].numel() // PATCH**2
        if self._room(self._device) >= bytes_to_stay(weights, tokens, config.dim, size):
            return True
        self._room = None  # it is asked once
        return False

    def _read_and_run(
        self,
        parts: Iterator[tuple[int | None, WanTransformer]],
        stays: bool,
        block: nn.Module,
        x: Tensor,
        *others: Tensor,
    ) -> Tensor:
        index, model = next(parts)
        assert index is not None
        assert model.blocks[index] is block
        if stays or index not in self._skipped:
            self._put_on(model, lambda name: name.startswith(f"blocks.{index}."))
        x = self._run(index, block, x, *others)
        if not stays:
            block.to("meta")
        return x

    def _run(self, index: int, block: nn.Module, x: Tensor, *others: Tensor) -> Tensor:
        if index in self._skipped:
            return x
        time_mod, rope, *contexts = others
        for row in range(x.shape[0]):  # in place, one by one: no row but this one is there twice
            one = slice(row, row + 1)
            x[one] = block(x[one], time_mod[one], rope, *(tokens[one] for tokens in contexts))
        return x

    def _put_on(self, model: nn.Module, is_wanted: Callable[[str], bool]) -> None:
        for modules, strength in self._loras:
            attach(model, {name: module for name, module in modules.items() if is_wanted(name)}, strength)


def other_spec(
    stage: Stage, own: CheckpointInfo, other: CheckpointInfo | None, *, allow_other: bool = False
) -> ModelSpec | None:
    """What a job says of the other expert; ConfigError for a file that is none of this model's.

    `allow_other`: also for one that by its name is the expert that `stage` trains.
    """
    if other is None:
        return None
    name = shown(other.path.name)
    if stage == "single":
        raise ConfigError(f"{name} is given as the other expert, but a single model has none: leave it out.")
    if other.config != own.config:
        raise ConfigError(
            f"{name} is not the other expert of {shown(own.path.name)}: their sizes or kinds differ; give the {OTHER[stage]} "
            "noise file of the same Wan 2.2 model."
        )
    own_stage = "high" if stage == "both" else stage
    if hints_expert(other.path) == own_stage and not allow_other:
        raise ConfigError(
            f"{name} is the {own_stage} noise expert by its name, but it is given as the other one: give the {OTHER[stage]}"
            " noise file. If you mean it, switch allow_other_expert on."
        )
    return ModelSpec(path=str(other.path), identity=other.identity)


def newest_lora(folder: Path, job: Job) -> tuple[Path, int] | None:
    """The LoRA that the run of the other stage has made so far, and its step: its result or its newest checkpoint.

    `folder`: of this run. The other one lies beside it, has the job's name, and trains the expert that the job names. Of
    several the one that was written last.
    """
    if job.other_expert is None or job.stage not in ("high", "low"):
        return None
    found: list[tuple[float, Path, int]] = []
    for other in folder.parent.glob(f"{escape(job.name)}_{OTHER[job.stage]}_*"):
        run = RunFolder(other)
        data = read_object(run.job_path) or {}
        is_of_pair = data.get("name") == job.name and data.get("stage") == OTHER[job.stage]
        if is_of_pair and as_table(data.get("model")).get("identity") == job.other_expert.identity:
            there = [(path, step) for path, step in _loras(run) if path.is_file()]
            found += [(path.stat().st_mtime, path, step) for path, step in there[:1]]
    if not found:
        return None
    _, path, step = max(found)
    return path, step


def _loras(run: RunFolder) -> list[tuple[Path, int]]:
    """The one of most steps first; of equal ones the result, beside which its checkpoint was written at the same time."""
    found: list[tuple[Path, int]] = []
    result = read_object(run.path / RESULT) or {}
    step, name = result.get("step"), result.get("lora")
    if isinstance(step, int) and isinstance(name, str) and Path(name).name == name:
        found.append((run.path / name, step))
    found += [(path / ADAPTER, number) for number, path in run.checkpoints()[-1:]]
    return sorted(found, key=lambda one: -one[1])


def open_other(
    spec: ModelSpec,
    device: torch.device,
    lora: Path | None,
    *,
    beside: Sequence[tuple[Path, float]] = (),
    room: Callable[[torch.device], int] | None = None,
) -> OtherExpert:
    """The expert of a job, see `OtherExpert`. ModelFileError if its file is gone or another than it was."""
    info = inspect(Path(spec.path))
    if info.identity != spec.identity:
        raise ModelFileError(f"{shown(info.path)} has changed since the run was started.")
    return OtherExpert(info, device, lora, beside=beside, room=room)


def beside_own(job: Job) -> list[tuple[Path, float]] | None:
    """LoRAs that are on the job's own expert in previews, with their strengths; None: it is as it is in training."""
    options, adapter = job.previews, job.adapter
    if not reads_own(job):
        return None
    found = [(Path(options.lora), 1.0)] if options.lora else []
    if options.with_merged and adapter.merge_into_base:
        found.append((Path(adapter.merge_into_base), adapter.merge_strength))
    return found


def check_preview_loras(options: PreviewOptions, info: CheckpointInfo) -> None:
    """ConfigError for a LoRA of previews that can't be read, or of which nothing fits; both experts have the same layers."""
    for name, path in (("preview_lora", options.lora), ("preview_other_lora", options.other_lora)):
        if not adapter_identity(path, name):
            continue
        try:
            fits = bool(transfer_report(read_adapter(path), model_shapes(info.config)).placed)
        except (ConfigError, ModelFileError) as error:
            raise ConfigError(f"{name} can't be put on this model: {error}") from error
        if not fits:
            raise ConfigError(f"{name} is {shown(path)}, of which nothing fits this model: choose another file.")


def open_own(
    job: Job,
    model: nn.Module,
    device: torch.device,
    beside: Sequence[tuple[Path, float]],
    room: Callable[[torch.device], int] | None = None,
) -> OtherExpert:
    """The expert that the job trains, from its file, with the adapter that `model` carries now and those `beside` it."""
    with TemporaryDirectory(prefix="wantrain-preview-") as folder:
        lora = write_adapter(Path(folder) / "lora.safetensors", model, metadata={})
        return open_other(job.model, device, lora, beside=beside, room=room)
