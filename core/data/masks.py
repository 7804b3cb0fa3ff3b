"""Masks of the loss: which file has which, and what they are in latents. Shapes: F H W frames, height, width of masks."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from ..errors import DatasetError
from ..facts import FRAMES_PER_LATENT
from ..paths import shown
from ..settings.dataset import DatasetOptions
from ..words import counted
from .links import files_below, leads_within
from .media import MEDIA_SUFFIXES
from .partners import Partners, ownerless, without_ending, without_mark
from .probe import Probe
from .types import Mask, MediaFile, Note

_KNOWN_SUFFIX = "-masklabel"  # OneTrainer's
_OTHER_ASPECT = 0.02  # by which a mask's aspect may differ from its file's without a word


def to_latents(levels: np.ndarray, *, inverted: bool, least: float) -> torch.Tensor:
    """Masks [F, H, W] in 0..1, F is 4n+1, to [n+1, H, W] float32 from `least` to 1.

    The first latent frame is the first frame alone, each other the mean of four, as Wan's VAE takes them together.
    """
    masks = torch.from_numpy(1 - levels if inverted else levels).float()
    first, rest = masks[:1], masks[1:]
    if len(rest):
        first = torch.cat([first, rest.unflatten(0, (-1, FRAMES_PER_LATENT)).mean(1)])
    return least + (1 - least) * first


def separate_masks(
    folder: Path, media: Mapping[str, Path], options: DatasetOptions, within: Sequence[Path] | None
) -> tuple[dict[str, Path], dict[str, Path], list[Note]]:
    """The files that are trained on, the mask files by the name of the file that they belong to, and what is to be told.

    A file of mask_folder has the name of its file, whatever the ending, in the same folder below it or directly in it; one
    beside the media has mask_suffix behind its name. Neither is trained on. DatasetError for a folder that is not there.
    """
    kept, notes = dict(media), list[Note]()
    folder_masks: dict[str, Path] = {}
    root = folder
    if options.mask_folder:
        root = _mask_folder(folder, options.mask_folder, within)
        kept = {name: path for name, path in kept.items() if not leads_within(path, [root])}
        for path in files_below(root):
            if path.suffix.lower() in MEDIA_SUFFIXES and (within is None or leads_within(path, within)):
                folder_masks.setdefault(without_ending(path.relative_to(root).as_posix()), path)
    beside: dict[str, Path] = {}
    if options.mask_suffix:
        kept, beside, notes = _without_masks_beside(kept, options.mask_suffix)
    of_folder, of_suffix = Partners(folder_masks, kept, flat=True), Partners(beside, kept)
    found = {name: of_folder.of(name) or of_suffix.of(name) for name in kept}
    masks = {name: path for name, path in found.items() if path}
    owner = next((name for name in kept if name not in masks), "clip.mp4")
    left = sorted(path.relative_to(root).as_posix() for path in of_folder.left.values())
    notes += ownerless(
        [f"{root.name}/{name}" for name in left],
        "a mask",
        f"{without_ending(owner)}.png for {owner}",
    )
    return kept, masks, notes


def _without_masks_beside(
    media: Mapping[str, Path], suffix: str
) -> tuple[dict[str, Path], dict[str, Path], list[Note]]:
    """The files that are no masks of others; the masks by what their files are called; what ends as a mask, and is none."""
    named: dict[str, list[str]] = {}
    for name in media:
        if call := without_mark(without_ending(name), suffix):
            named.setdefault(call, []).append(name)
    partners = Partners({call: media[names[-1]] for call, names in named.items()}, media)
    for name in media:
        partners.of(name)
    left = partners.left
    masks = {call: media[names[-1]] for call, names in named.items() if call not in left}
    gone = {name for call in masks for name in named[call]}
    reason = f"its name ends in {suffix}, but no file has the rest of it as its name: it is trained on, and is no mask"
    notes = [Note(name=name, action="note", reason=reason) for call in left for name in named[call]]
    return {name: path for name, path in media.items() if name not in gone}, masks, notes


def look_like_masks(media: Mapping[str, Path]) -> list[Note]:
    """A word for each file that another program wrote as the mask of one beside it, and that would be trained on."""
    owners: dict[str, str] = {}
    for name in media:
        owners.setdefault(name.rpartition(".")[0], name)
    notes = []
    for name in media:
        stem = name.rpartition(".")[0]
        owner = owners.get(stem.removesuffix(_KNOWN_SUFFIX)) if stem.endswith(_KNOWN_SUFFIX) else None
        if owner:
            reason = (
                f"it looks like the mask of {owner}, and is trained on as a picture; set mask_suffix to {_KNOWN_SUFFIX}"
            )
            notes.append(Note(name=name, action="note", reason=reason))
    return notes


def _mask_folder(folder: Path, text: str, within: Sequence[Path] | None) -> Path:
    root = Path(text) if Path(text).is_absolute() else folder / text
    if not root.is_dir():
        raise DatasetError(
            f"mask_folder is '{shown(text)}', which is no folder within {folder}, nor a full path to one: check the path, or "
            "leave it empty."
        )
    if folder.resolve().is_relative_to(root.resolve()):
        raise DatasetError(
            f"mask_folder is '{shown(text)}', which holds the dataset {folder} itself, so that nothing would be left to train "
            "on: name the folder that holds the masks alone."
        )
    if within is not None and not leads_within(root, within):
        raise DatasetError(
            f"mask_folder is '{shown(text)}', which lies outside the dataset folders: put the masks there, or name their place "
            "as a dataset folder (datasets: in extra_model_paths.yaml, or WANTRAIN_DATASET_ROOTS)."
        )
    return root


def mask_of(
    file: MediaFile, has_alpha: bool, path: Path | None, probe: Probe | None, options: DatasetOptions
) -> tuple[Mask | None, list[Note]]:
    """The mask of one file, and what there is to say of it."""
    shared = {"inverted": options.mask_invert, "least": options.mask_least}
    if path is None or probe is None:
        if options.alpha_mask and has_alpha:
            return Mask(file=None, **shared), []
        return None, [Note(name=file.name, action="note", reason="it has no mask: its whole picture counts")]
    if probe.problem:
        return None, [_unused(file, path, probe.problem)]
    num_frames = len(probe.times_us)
    if num_frames not in (1, file.num_frames):
        return None, [_unused(file, path, f"it has {counted(num_frames, 'frame')}, and the clip has {file.num_frames}")]
    notes = []
    if abs(probe.width * file.height / (probe.height * file.width) - 1) > _OTHER_ASPECT:
        reason = f"its mask {path.name} is {probe.width}x{probe.height}, and is stretched to {file.width}x{file.height}"
        notes.append(Note(name=file.name, action="note", reason=reason))
    found = MediaFile(
        path=str(path),
        name=path.name,
        sha256=probe.sha256,
        kind=probe.kind,
        width=probe.width,
        height=probe.height,
        num_frames=num_frames,
        fps=0.0,
        caption="",
        read_as=probe.read_as,
    )
    return Mask(file=found, **shared), notes


def _unused(file: MediaFile, path: Path, why: str) -> Note:
    return Note(
        name=file.name, action="note", reason=f"its mask {path.name} is not used: {why}; its whole picture counts"
    )
