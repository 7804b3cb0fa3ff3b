"""Which samples make which batch, as a function of (seed, index), and reading them from disk one batch ahead."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..data.conditioning import Conditioning, known_mask
from ..errors import DatasetError
from ..flow.random import stream
from .job import DataSpec, TrainSample

TEXT_LEN = 512


@dataclass(frozen=True)
class Batch:
    """B samples of one shape."""

    latents: torch.Tensor  # [B, C, F, H, W] float32
    context: torch.Tensor  # [B, 512, D] float32, zero-padded
    names: tuple[str, ...]
    conditioning: torch.Tensor | None = None  # [B, 4 + C, F, H, W]: image-to-video's mask and latents of known frames
    clip_features: torch.Tensor | None = None  # [B, I, 1280]: Wan 2.1 image-to-video


def load_tensor(path: str, key: str, name: str) -> torch.Tensor:
    """One cached tensor; DatasetError when the file is gone or damaged."""
    try:
        return load_file(Path(path))[key]
    except (OSError, SafetensorError, KeyError) as error:
        raise DatasetError(
            f"the cached {key} of {name} can't be read from {path} ({error}): delete that file and queue again."
        ) from error


def load_context(path: str, name: str) -> torch.Tensor:
    """A caption's embedding, zero-padded to [512, D] as the model was trained (Wan2.2, wan/modules/model.py)."""
    context = load_tensor(path, "context", name)
    return torch.nn.functional.pad(context, (0, 0, 0, TEXT_LEN - context.shape[0]))


def load_conditioning(sample: TrainSample, conditioning: Conditioning) -> torch.Tensor:
    """What an image-to-video model is given of a sample, [4 + C, F, H, W]: the mask, then the known frames' latents."""
    _, num_frames, height, width = sample.shape
    mask = known_mask(conditioning, (num_frames, height, width))
    return torch.cat([mask, load_tensor(sample.known_path, "latents", sample.name)])


def load_batch(samples: Sequence[TrainSample], contexts: Sequence[str], conditioning: Conditioning = "none") -> Batch:
    """Read the samples; `contexts` are the paths of the embeddings to use."""
    latents = [load_tensor(s.latents_path, "latents", s.name) for s in samples]
    texts = [load_context(path, s.name) for s, path in zip(samples, contexts, strict=True)]
    known = [load_conditioning(s, conditioning) for s in samples if s.known_path]
    features = [load_tensor(s.vision_path, "features", s.name) for s in samples if s.vision_path]
    return Batch(
        torch.stack(latents),
        torch.stack(texts),
        tuple(s.name for s in samples),
        conditioning=torch.stack(known) if known else None,
        clip_features=torch.stack(features) if features else None,
    )


class BatchSchedule:
    """An endless, shuffled sequence of batches; batch `index` depends on (seed, index) alone.

    An epoch takes every sample `repeats` times. Samples are grouped by shape, so the last batch of a shape may be
    smaller; none is dropped.
    """

    def __init__(self, data: DataSpec, *, batch_size: int, seed: int, caption_dropout: float):
        self._data = data
        self._samples = [s for s in data.samples if not s.held_out]
        self._batch_size = batch_size
        self._seed = seed
        self._caption_dropout = caption_dropout
        self._epoch_cache: tuple[int, list[list[int]]] = (-1, [])
        self.batches_per_epoch = len(self._epoch(0))

    def _epoch(self, epoch: int) -> list[list[int]]:
        if self._epoch_cache[0] != epoch:
            generator = stream(self._seed, "epoch", epoch)
            indices = [i for i, s in enumerate(self._samples) for _ in range(s.repeats)]
            groups: dict[tuple[int, ...], list[int]] = {}
            for position in torch.randperm(len(indices), generator=generator).tolist():
                index = indices[position]
                groups.setdefault(self._samples[index].shape, []).append(index)
            batches = [
                group[start : start + self._batch_size]
                for _, group in sorted(groups.items())
                for start in range(0, len(group), self._batch_size)
            ]
            order = torch.randperm(len(batches), generator=generator).tolist()
            self._epoch_cache = (epoch, [batches[i] for i in order])
        return self._epoch_cache[1]

    def samples_at(self, index: int) -> list[TrainSample]:
        """The samples of batch `index`."""
        epoch, position = divmod(index, self.batches_per_epoch)
        return [self._samples[i] for i in self._epoch(epoch)[position]]

    def load(self, index: int) -> Batch:
        """Read batch `index` from disk, with captions dropped at random as configured."""
        samples = self.samples_at(index)
        dropped = torch.rand(len(samples), generator=stream(self._seed, "caption", index)) < self._caption_dropout
        paths = [
            self._data.empty_text_path if drop else sample.text_path
            for sample, drop in zip(samples, dropped.tolist(), strict=True)
        ]
        return load_batch(samples, paths, self._data.conditioning)


class Prefetcher:
    """Reads the next batch in a thread while the current one trains."""

    def __init__(self, schedule: BatchSchedule, first: int):
        self._schedule = schedule
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._next: tuple[int, Future[Batch]] = (first, self._pool.submit(schedule.load, first))

    def get(self, index: int) -> Batch:
        """Batch `index`; the one after it starts loading."""
        ahead, future = self._next
        batch = future.result() if ahead == index else self._schedule.load(index)
        self._next = (index + 1, self._pool.submit(self._schedule.load, index + 1))
        return batch

    def close(self) -> None:
        """Stop the thread."""
        self._pool.shutdown(wait=False, cancel_futures=True)
