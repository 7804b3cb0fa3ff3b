"""Which samples make which batch, their noise, and reading them ahead: all of it a function of (seed, index).

B batch, C channels, F latent frames, H W latent size, D width of the text embeddings, I image tokens.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..data.conditioning import known_mask
from ..data.counting import LatentShape, batch_limit
from ..data.store import DamagedEntryError, read_entry
from ..disk import set_aside
from ..errors import START_AGAIN, DatasetError
from ..facts import TEXT_TOKENS, num_tokens
from ..flow.objective import sample_noise
from ..flow.random import stream
from ..flow.sigmas import sample_sigmas
from ..objective.forwards import ClassContext
from ..objective.rollout import draw_rollouts
from ..objective.tread import draw_kept
from ..settings.dataset import Conditioning
from ..settings.job import DataSpec, Job, TrainSample
from ..settings.loop import LoopOptions
from ..shortage import is_out_of_memory


@dataclass(frozen=True)
class Draws:
    """What is random about a batch."""

    noise: torch.Tensor  # [B, C, F, H, W] float32
    sigmas: torch.Tensor  # [B] float32
    kept_tokens: torch.Tensor | None = None  # [B, N] int64: those that pass the blocks of routes (TREAD); None: all
    rollouts: tuple[tuple[int, int], ...] = ()  # levels at which each sample's rollout begins and ends; (): none

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Draws":
        """The draws with `change` applied to each tensor."""
        kept = None if self.kept_tokens is None else change(self.kept_tokens)
        return replace(self, noise=change(self.noise), sigmas=change(self.sigmas), kept_tokens=kept)


@dataclass(frozen=True)
class Batch:
    """B samples of one shape."""

    latents: torch.Tensor  # [B, C, F, H, W] float32
    context: torch.Tensor  # [B, 512, D] float32, zero-padded
    names: tuple[str, ...]
    conditioning: torch.Tensor | None = None  # [B, 4 + C, F, H, W]: image-to-video's mask and latents of known frames
    clip_features: torch.Tensor | None = None  # [B, I, 1280]: Wan 2.1 image-to-video
    loss_weights: torch.Tensor | None = None  # [B] float32: what the loss of each sample counts; None: the same for all
    features: torch.Tensor | None = (
        None  # [B, F, P, E] float16: what DINOv2 sees in the frames, where an objective asks
    )
    masks: torch.Tensor | None = None  # [B, 1, F, H, W] float32: what the error at each latent counts; None: the same
    of_class: ClassContext | None = None  # the captions with the class word, where an objective asks for them
    priors: torch.Tensor | None = None  # [B] bool: samples of regularization sets; None: none is
    draws: Draws | None = None  # where they were made ahead
    first_draw: int | None = None  # how many samples the run has seen before it; None: not known

    @property
    def num_tokens(self) -> int:
        """Video tokens of all samples."""
        return self.latents.shape[0] * num_tokens(self.latents.shape)

    @property
    def images(self) -> dict[str, torch.Tensor]:
        """What an image-to-video model is given besides text, by the model's names; nothing for the others."""
        given = {"conditioning": self.conditioning, "clip_features": self.clip_features}
        return {name: tensor for name, tensor in given.items() if tensor is not None}

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        """The batch with `change` applied to each of its tensors."""
        return Batch(
            change(self.latents),
            change(self.context),
            self.names,
            conditioning=None if self.conditioning is None else change(self.conditioning),
            clip_features=None if self.clip_features is None else change(self.clip_features),
            loss_weights=None if self.loss_weights is None else change(self.loss_weights),
            masks=None if self.masks is None else change(self.masks),
            features=None if self.features is None else change(self.features),
            of_class=None if self.of_class is None else self.of_class.map(change),
            priors=None if self.priors is None else change(self.priors),
            draws=None if self.draws is None else self.draws.map(change),
            first_draw=self.first_draw,
        )


_checked: dict[str, tuple[int, int]] = {}  # files whose checksum was compared, with their size and time
_damaged: dict[str, str] = {}  # files that were set aside, with the sentence


def load_tensor(path: str, key: str, name: str, shape: Sequence[int] | None = None) -> torch.Tensor:
    """One cached tensor, of this `shape` if one is given; DatasetError when the file is gone or damaged.

    The file is compared with its checksum at its first read in this process, and whenever it has changed. A damaged one is
    set aside, so that whoever can encode it again finds it missing.
    """
    try:
        tensors = _read_checked(path)
        if key not in tensors or (shape is not None and tuple(tensors[key].shape) != tuple(shape)):
            raise DamagedEntryError("it holds something else")
        return tensors[key]
    except OSError as error:
        if is_out_of_memory(error):
            raise
        raise DatasetError(_damaged.get(path) or _unreadable(path, key, name, error), about=START_AGAIN) from error
    except (SafetensorError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        _damaged[path] = (
            f"{_cached(key, name)} damaged in {path} ({error}): that file is now called "
            f"{set_aside(Path(path)).name}; start again, and it is encoded anew."
        )
        raise DatasetError(_damaged[path], about=START_AGAIN) from error


def _read_checked(path: str) -> dict[str, torch.Tensor]:
    stat = Path(path).stat()
    which = stat.st_size, stat.st_mtime_ns
    if _checked.get(path) == which:
        return load_file(Path(path))
    tensors = read_entry(Path(path))
    _checked[path] = which
    return tensors


def _unreadable(path: str, key: str, name: str, error: OSError) -> str:
    said = _cached(key, name)
    if isinstance(error, FileNotFoundError):
        return (
            f"{said} gone from {path}: start again, and {'they are' if said.endswith('are') else 'it is'} encoded anew."
        )
    return f"{said} not readable in {path} ({error}): delete that file and start again."


def _cached(key: str, name: str) -> str:
    return f"the cached text of {name} is" if key == "context" else f"the cached {key} of {name} are"


def load_context(path: str, name: str) -> torch.Tensor:
    """A caption's embedding, zero-padded to [512, D] as the model was trained (Wan2.2, wan/modules/model.py)."""
    context = load_tensor(path, "context", name)
    return torch.nn.functional.pad(context, (0, 0, 0, TEXT_TOKENS - context.shape[0]))


def load_conditioning(sample: TrainSample, conditioning: Conditioning) -> torch.Tensor:
    """What an image-to-video model is given of a sample, [4 + C, F, H, W]: the mask, then the known frames' latents."""
    _, num_frames, height, width = sample.shape
    mask = known_mask(conditioning, (num_frames, height, width))
    return torch.cat([mask, load_tensor(sample.known_path, "latents", sample.name, sample.shape)])


def load_batch(samples: Sequence[TrainSample], contexts: Sequence[str], conditioning: Conditioning = "none") -> Batch:
    """Read the samples; `contexts` are the paths of the embeddings to use."""
    latents = [load_tensor(s.latents_path, "latents", s.name, s.shape) for s in samples]
    texts = [load_context(path, s.name) for s, path in zip(samples, contexts, strict=True)]
    known = [load_conditioning(s, conditioning) for s in samples if s.known_path]
    features = [load_tensor(s.vision_path, "features", s.name) for s in samples if s.vision_path]
    return Batch(
        torch.stack(latents),
        torch.stack(texts),
        tuple(s.name for s in samples),
        conditioning=torch.stack(known) if known else None,
        clip_features=torch.stack(features) if features else None,
        loss_weights=_loss_weights(samples),
        masks=_masks(samples),
    )


def load_class_context(samples: Sequence[TrainSample], drawn: Sequence[int]) -> ClassContext | None:
    """The class captions of the samples, of each the one that belongs to its caption number `drawn`; None: none has any.

    A dropped caption keeps its class caption: what the base says of it does not depend on what the LoRA is shown.
    """
    if not any(sample.class_texts for sample in samples):
        return None
    texts = [
        s.class_texts[number].path if s.class_texts else s.text_path for s, number in zip(samples, drawn, strict=True)
    ]
    contexts = [load_context(path, sample.name) for path, sample in zip(texts, samples, strict=True)]
    return ClassContext(torch.stack(contexts), torch.tensor([float(bool(sample.class_texts)) for sample in samples]))


def _loss_weights(samples: Sequence[TrainSample]) -> torch.Tensor | None:
    weights = [sample.loss_weight for sample in samples]
    return torch.tensor(weights) if any(weight != 1 for weight in weights) else None


def _masks(samples: Sequence[TrainSample]) -> torch.Tensor | None:
    """[B, 1, F, H, W]; ones for a sample that has none."""
    if not any(sample.mask_path for sample in samples):
        return None
    masks = [
        load_tensor(s.mask_path, "mask", s.name, s.shape[1:]) if s.mask_path else torch.ones(s.shape[1:])
        for s in samples
    ]
    return torch.stack(masks).unsqueeze(1)


def make_draws(job: Job, batch: Batch, index: int) -> Draws:
    """Noise and sigmas of batch number `index` of a run, drawn on the CPU: a function of (seed, index) alone."""
    seed, first = job.loop.seed, index * job.loop.batch_size  # no batch is larger, so that no draw is used twice
    levels = job.timesteps_at(index)
    first_sigma = first
    if job.timesteps.strata > 1 and batch.first_draw is not None:  # counted without gaps, so that no cell is left out
        first_sigma = batch.first_draw
    count, shape = len(batch.names), batch.latents.shape
    sigmas = sample_sigmas(levels, seed=seed, first_draw=first_sigma, count=count, shape=shape)
    noise = [sample_noise(z.shape, seed=seed, draw=first + i) for i, z in enumerate(batch.latents)]
    kept = draw_kept(job, tuple(shape), seed=seed, first_draw=first)
    rollouts = draw_rollouts(job, sigmas, index=index, first_draw=first)
    return Draws(torch.stack(noise), sigmas, kept, rollouts)


class BatchSchedule:
    """An endless, shuffled sequence of batches; batch `index` depends on (seed, index) alone.

    An epoch takes every sample `repeats` times. Samples are grouped by shape, so the last batch of a shape may be
    smaller; none is dropped. A batch has at most `batch_size` samples and, where a `token_budget` is given, no more
    tokens than that, unless one sample alone has more: images then come many at a time, and long clips one by one.
    """

    @classmethod
    def of(
        cls,
        data: DataSpec,
        loop: LoopOptions,
        *,
        with_class: bool = False,
        feature_path: Callable[[TrainSample], str] | None = None,
        turn: int = 0,
    ) -> "BatchSchedule":
        """The sequence that a run with these options trains on.

        `with_class`: with the class captions, too. `feature_path`: with the features that lie there for each sample. `turn`:
        batches after which the other of two experts has its turn; 0: there is one model.
        """
        return cls(
            data,
            batch_size=loop.batch_size,
            seed=loop.seed,
            caption_dropout=loop.caption_dropout,
            token_budget=loop.token_budget or None,
            with_class=with_class,
            feature_path=feature_path,
            turn=turn,
        )

    def __init__(
        self,
        data: DataSpec,
        *,
        batch_size: int,
        seed: int,
        caption_dropout: float,
        token_budget: int | None = None,
        with_class: bool = False,
        feature_path: Callable[[TrainSample], str] | None = None,
        turn: int = 0,
    ):
        self._turn = turn
        self._own_draws = [0, 0]  # by the number of a turn: what was drawn before it for the same expert
        self._data = data
        self._samples = [s for s in data.samples if not s.held_out]
        self._batch_size = batch_size
        self._token_budget = token_budget
        self._seed = seed
        self._caption_dropout = caption_dropout
        self._with_class = with_class
        self._feature_path = feature_path
        self._epoch_cache: tuple[int, list[list[int]]] = (-1, [])
        self.batches_per_epoch = len(self._epoch(0))

    def _epoch(self, epoch: int) -> list[list[int]]:
        if self._epoch_cache[0] != epoch:
            generator = stream(self._seed, "epoch", epoch)
            indices = [i for i, s in enumerate(self._samples) for _ in range(s.repeats)]
            groups: dict[LatentShape, list[int]] = {}
            for position in torch.randperm(len(indices), generator=generator).tolist():
                index = indices[position]
                groups.setdefault(self._samples[index].shape, []).append(index)
            batches = [batch for shape, group in sorted(groups.items()) for batch in self._split(group, shape)]
            order = torch.randperm(len(batches), generator=generator).tolist()
            self._epoch_cache = (epoch, [batches[i] for i in order])
        return self._epoch_cache[1]

    def _split(self, group: list[int], shape: LatentShape) -> list[list[int]]:
        size = batch_limit(shape, self._batch_size, self._token_budget)
        return [group[start : start + size] for start in range(0, len(group), size)]

    def samples_at(self, index: int) -> list[TrainSample]:
        """The samples of batch `index`."""
        epoch, position = divmod(index, self.batches_per_epoch)
        return [self._samples[i] for i in self._epoch(epoch)[position]]

    def draws_before(self, index: int) -> int:
        """How many samples all batches before batch `index` have: one draw of a noise level each."""
        epoch, position = divmod(index, self.batches_per_epoch)
        sizes = [len(batch) for batch in self._epoch(epoch)]
        return epoch * sum(sizes) + sum(sizes[:position])

    def own_draws_before(self, index: int) -> int:
        """As `draws_before`, of the batches of the same expert alone where two take turns."""
        if not self._turn:
            return self.draws_before(index)
        number = index // self._turn
        while len(self._own_draws) <= number:
            last = (len(self._own_draws) - 2) * self._turn
            drawn = self.draws_before(last + self._turn) - self.draws_before(last)
            self._own_draws.append(self._own_draws[-2] + drawn)
        return self._own_draws[number] + self.draws_before(index) - self.draws_before(number * self._turn)

    def load(self, index: int) -> Batch:
        """Read batch `index` from disk, with captions dropped at random as configured."""
        samples = self.samples_at(index)
        chances = torch.tensor([self._dropout_of(sample) for sample in samples])
        dropped = torch.rand(len(samples), generator=stream(self._seed, "caption", index)) < chances
        drawn = [self._draw_caption(sample, index, place) for place, sample in enumerate(samples)]
        paths = [
            self._data.empty_text_path if drop else (sample.text_path, *(t.path for t in sample.more_texts))[number]
            for sample, drop, number in zip(samples, dropped.tolist(), drawn, strict=True)
        ]
        batch = load_batch(samples, paths, self._data.conditioning)
        of_class = load_class_context(samples, drawn) if self._with_class else None
        of_sets = [sample.is_regularization for sample in samples]
        priors = torch.tensor(of_sets) if any(of_sets) else None
        features = None
        if self._feature_path is not None:
            features = torch.stack([load_tensor(self._feature_path(s), "features", s.name) for s in samples])
        return replace(
            batch, first_draw=self.own_draws_before(index), of_class=of_class, features=features, priors=priors
        )

    def _dropout_of(self, sample: TrainSample) -> float:
        return self._caption_dropout if sample.caption_dropout is None else sample.caption_dropout

    def _draw_caption(self, sample: TrainSample, index: int, place: int) -> int:
        """Which of the sample's captions is used, each as likely as the others."""
        if not sample.more_texts:
            return 0
        count = 1 + len(sample.more_texts)
        return int(torch.randint(count, (), generator=stream(self._seed, f"caption of {place}", index)))


def load_drawn(job: Job, schedule: BatchSchedule, index: int) -> Batch:
    """Batch number `index` with its draws."""
    batch = schedule.load(index)
    return replace(batch, draws=make_draws(job, batch, index))


class Prefetcher:
    """Reads the next `ahead` batches in a thread while the current one trains.

    For a GPU the thread also copies them there, from pinned memory on a stream of its own, so that no step waits for a
    copy.
    """

    def __init__(
        self,
        load: Callable[[int], Batch],
        first: int,
        *,
        device: torch.device | None = None,
        ahead: int = 1,
        following: Callable[[int], Iterable[int]] = count,
    ):
        """`following`: the numbers of the batches that will be asked for, from a given one on."""
        self._load = load
        self._ahead = ahead
        self._following = following
        self._device = device
        # Of high priority: PyTorch deals out 32 streams of each priority again and again, and CUDA graphs are recorded on one
        # of the usual; a batch that is copied on the same would be part of the recording.
        is_cuda = device is not None and device.type == "cuda"
        self._stream = torch.cuda.Stream(device, priority=-1) if is_cuda else None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._pending: dict[int, Future[tuple[Batch, torch.cuda.Event | None]]] = {}
        self._request(list(islice(following(first), ahead)))

    def get(self, index: int) -> Batch:
        """Batch `index`, on the GPU if there is one; those after it start loading."""
        self._request(list(islice(self._following(index), self._ahead + 1)))
        batch, copied = self._pending.pop(index).result()
        if copied is not None:
            batch = _hand_over(batch, copied, torch.cuda.current_stream(self._device))
        return batch

    def close(self) -> None:
        """Stop the thread."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _request(self, indices: list[int]) -> None:
        for index in self._pending.keys() - set(indices):
            self._pending.pop(index).cancel()
        for index in indices:
            if index not in self._pending or _failed(self._pending[index]):
                self._pending[index] = self._pool.submit(self._fetch, index)

    def _fetch(self, index: int) -> tuple[Batch, torch.cuda.Event | None]:
        batch = self._load(index)
        if self._stream is None:
            return batch, None
        with torch.cuda.stream(self._stream):
            batch = batch.map(lambda tensor: tensor.pin_memory().to(self._device, non_blocking=True))
            copied = torch.cuda.Event()
            copied.record(self._stream)
            return batch, copied


def _failed(future: Future[Any]) -> bool:
    """Whether reading ahead ended in an error: it is tried again when the batch is needed."""
    return future.done() and not future.cancelled() and future.exception() is not None


def _hand_over(batch: Batch, copied: torch.cuda.Event, stream: torch.cuda.Stream) -> Batch:
    """Make `stream` wait for the copy, and its memory last until `stream` is done with it; the host waits for nothing."""
    stream.wait_event(copied)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        tensor.record_stream(stream)
        return tensor

    return batch.map(keep)
