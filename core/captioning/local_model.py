"""A vision-language model in a folder, by transformers. Shapes: F frames, H W pixels, B questions, S tokens."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..devices import resolve_device
from ..errors import ModelFileError, RunError
from ..packages import advice, installed_version, release
from ..shortage import is_out_of_memory
from ..words import counted

_LEAST = "4.57"  # of transformers: its `dtype`, and AutoModelForImageTextToText with today's models


def check_folder(folder: Path) -> None:
    """ModelFileError for a folder that is no vision-language model as transformers keeps it; reads its configuration alone."""
    config = folder / "config.json"
    if not folder.is_dir():
        raise ModelFileError(f"The model folder {folder} does not exist: check the path.")
    if not config.is_file():
        raise ModelFileError(
            f"{folder} holds no config.json: give the folder of a vision-language model as Hugging Face has it, such as "
            "Qwen2.5-VL-3B-Instruct, with its weights and its processor."
        )
    try:
        found = json.loads(config.read_text(encoding="utf-8"))
        kind = found["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelFileError(f"{config} names no model_type: the file is damaged; download the model again.") from error
    if not any(folder.glob("*.safetensors")):
        raise ModelFileError(f"{folder} holds no weights (*.safetensors): download the model of type {kind} again.")


class LocalModel:
    """A model that describes pictures; loaded when it is made."""

    def __init__(self, folder: Path, *, device: str = "auto") -> None:
        check_folder(folder)
        version = installed_version("transformers")
        if not version or release(version) < release(_LEAST):
            there = f"is version {version}" if version else "is not installed"
            raise RunError(
                f"The package transformers {there}, but captions need {_LEAST} or newer: {advice('transformers')}"
            )
        self.batch_size = 2**20
        self._device = resolve_device(device)
        self._processor, self._model = _load(folder, self._device)

    def describe(
        self, shown: Sequence[torch.Tensor], questions: Sequence[str], max_tokens: int
    ) -> list[tuple[str, bool]]:
        """See `folder.Describer`."""
        texts = [self._prompt(len(frames), question) for frames, question in zip(shown, questions, strict=True)]
        pictures = [[Image.fromarray(frame.numpy()) for frame in frames] for frames in shown]
        try:
            inputs = self._processor(text=texts, images=pictures, return_tensors="pt", padding=True)
        except (ValueError, TypeError, RuntimeError) as error:
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelFileError(
                f"The model's processor does not take these pictures ({why}): use another model."
            ) from error
        inputs = inputs.to(self._device, self._model.dtype)  # floats alone take the dtype
        try:
            with torch.inference_mode():
                tokens = self._model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise RunError(
                f"The model ran out of memory with {counted(len(shown), 'file')} at once: lower batch_size, num_frames or "
                "picture_size; the captions so far are kept."
            ) from error
        new = tokens[:, inputs["input_ids"].shape[1] :]  # [B, S]
        answers = self._processor.batch_decode(new, skip_special_tokens=True)
        ends = self._end_tokens()
        return [
            (answer, len(row) >= max_tokens and not ends & set(row.tolist()))
            for answer, row in zip(answers, new, strict=True)
        ]

    def _prompt(self, num_pictures: int, question: str) -> str:
        content = [*({"type": "image"} for _ in range(num_pictures)), {"type": "text", "text": question}]
        return self._processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)

    def _end_tokens(self) -> set[int]:
        ends = self._model.generation_config.eos_token_id
        return set(ends) if isinstance(ends, list) else {ends}


def _load(folder: Path, device: torch.device) -> tuple[Any, Any]:
    """(processor, model), from files of the folder alone: nothing is downloaded, and no code of the folder is run."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    known = {"local_files_only": True, "trust_remote_code": False}
    try:
        processor: Any = AutoProcessor.from_pretrained(str(folder), **known)
        dtype = torch.float32 if device.type == "cpu" else "auto"
        model: Any = AutoModelForImageTextToText.from_pretrained(
            str(folder), dtype=dtype, use_safetensors=True, low_cpu_mem_usage=True, **known
        )
        model = model.to(device).eval()
    except Exception as error:  # what a folder of anything makes transformers raise has no end
        if is_out_of_memory(error):
            raise RunError(f"Memory is too small for the model in {folder}: use a smaller one.") from error
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelFileError(
            f"{folder} cannot be loaded as a vision-language model ({why}): use one that this version of transformers knows "
            "without code of its own, such as Qwen2.5-VL or SmolVLM."
        ) from error
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None or not getattr(processor, "chat_template", None) or not hasattr(processor, "image_processor"):
        raise ModelFileError(
            f"{folder} has no processor for questions on pictures (a tokenizer, a picture processor and a chat template): use "
            "an instruction-tuned vision-language model."
        )
    tokenizer.padding_side = "left"  # answers begin where questions end
    return processor, model
