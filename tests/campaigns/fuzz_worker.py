"""Reads files as the pack does, one for each line on standard input, and says what came of it: run by fuzz.py."""

import importlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

MOST_SAMPLES = 20  # of a folder; hundreds of windows of one clip are as many decodings


def read_dataset(path: Path, chance: int) -> str:
    """Scan its folder, and read the frames of all samples as the encoder does; nothing may vanish."""
    from wan_train.core.data.decode import read_frames
    from wan_train.core.data.scan import scan_folder
    from wan_train.core.errors import DatasetError
    from wan_train.core.settings.dataset import DatasetOptions

    options: dict[str, Any] = {"width": 32, "height": 32, "num_frames": (1, 5, 9)[chance % 3], "trigger_word": "ohwx"}
    options |= {"frame_sampling": ("head", "chunk", "slide", "uniform", "full", "even")[chance % 6], "slide_stride": 1}
    dataset = scan_folder(path.parent, DatasetOptions(**options))
    media = [
        file.name
        for file in path.parent.iterdir()
        if file.stem == "try" and file.suffix != ".txt" and not file.is_dir()
    ]
    told = {note.name for note in dataset.notes}
    for name in media:
        assert name in told or name in {sample.file.name for sample in dataset.samples}, f"{name} vanished"
    refused = ""
    for sample in dataset.samples[:: max(1, len(dataset.samples) // MOST_SAMPLES)]:
        try:
            frames = read_frames(sample)
        except DatasetError as error:
            refused = _named(error, Path(sample.file.path))
        else:
            assert frames.shape == (len(sample.frame_indices), sample.height, sample.width, 3)
    skipped = [note for note in dataset.notes if note.action in ("skipped", "dropped") and note.name in media]
    if skipped:
        _refuses(path.parent, options, skipped[0].name)
        return f"note: {skipped[0].reason}"
    return refused


def _refuses(folder: Path, options: dict[str, Any], name: str) -> None:
    """With bad_files "refuse" the same folder is refused by the file's name."""
    from wan_train.core.data.scan import scan_folder
    from wan_train.core.errors import DatasetError
    from wan_train.core.settings.dataset import DatasetOptions

    told = ""
    try:
        scan_folder(folder, DatasetOptions(**options, bad_files="refuse"))
    except DatasetError as error:
        told = str(error)
    assert name in told, f"{name} was skipped, but with 'refuse' this came: {told or 'nothing'}"


def read_model(path: Path, chance: int) -> str:
    """Inspect it and load it."""
    import torch
    from wan_train.core.wan.checkpoint import inspect
    from wan_train.core.wan.loading import load_transformer

    info = inspect(path if path.name != "config.json" else path.with_name("model.safetensors"))
    load_transformer(info, dtype=(torch.float32, torch.bfloat16)[chance % 2], device="cpu")
    return ""


def read_lora(path: Path, chance: int) -> str:
    """Read it and take the product of each module."""
    from wan_train.core.adapters.formats import read_lora

    file = read_lora(path)
    assert all(module.delta().ndim == 2 for module in file.modules.values())
    assert file.expert in ("high", "low", None)
    return ""


def read_recovery(path: Path, chance: int) -> str:
    """Read the half of either expert."""
    from wan_train.core.wan.recovery import file_identity, read_recovery_adapter

    file_identity(path)
    factors = read_recovery_adapter(path, ("high", None, "low")[chance % 3])
    assert all((up.float() @ down.float()).ndim == 2 for down, up in factors.values())
    return ""


def read_weights(path: Path, chance: int) -> str:
    """Read every tensor, as the encoders do."""
    from wan_train.core.encoders.weights import open_weights

    weights = open_weights(path)
    assert all(tuple(tensor.shape) == weights.shapes[name] for name, tensor in weights.read(weights.shapes))
    return ""


READERS = {
    **dict.fromkeys(("model", "fp8", "gguf", "index", "config"), read_model),
    **dict.fromkeys(("lora", "peft"), read_lora),
    "recovery": read_recovery,
    **dict.fromkeys(("weights", "pickle"), read_weights),
}


def _named(error: Exception, path: Path) -> str:
    """The message, which must name the file, or the folder or part that it stands for."""
    from wan_train.core.errors import WanTrainError

    assert isinstance(error, WanTrainError)
    message = str(error)
    message.encode()  # must be printable
    names = (path.name, path.stem.split(".")[0], str(path.parent))
    assert any(name in message for name in names), f"the error does not name {path.name}: {message}"
    assert len(message) < 3000, f"the error has {len(message)} letters: {message[:200]}"
    assert message.rstrip().endswith((".", ")")), f"the error is no sentence: {message}"
    return f"{type(error).__name__}: {message}"


def judge(kind: str, path: Path, chance: int) -> tuple[str, str]:
    """("value" or "named" or "unnamed", what came)."""
    from wan_train.core.errors import WanTrainError

    try:
        try:
            told = READERS.get(kind, read_dataset)(path, chance)
        except WanTrainError as error:
            told = _named(error, path)
        return ("named" if told else "value"), told
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-3:]
        places = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(where))
        return "unnamed", f"{type(error).__name__}: {str(error)[:500]} ({places})"


def main() -> None:
    """Serve until standard input ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="backslashreplace")
    os.dup2(2, 1)  # libraries that print
    import torch

    torch.set_num_threads(1)
    replies.write("ready\n")
    replies.flush()
    for line in sys.stdin:
        kind, path, chance = json.loads(line)
        outcome, told = judge(kind, Path(path), chance)
        replies.write(json.dumps([outcome, told]) + "\n")
        replies.flush()


if __name__ == "__main__":
    importlib.import_module("run").register_pack()  # beside this file
    main()
