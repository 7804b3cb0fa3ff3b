"""Runs the `run.py` of an AI-Toolkit checkout as it is, and writes a line of JSON for every step.

python aitoolkit_launch.py CHECKOUT JOB MODEL RECORDS DUMPS

Its configuration, job, model class, LoRA, loop, dataset and optimizer are its own. What it gets in place of files are, at
its own seams: the transformer, which Diffusers converts in memory from the official file MODEL; a small text encoder and VAE
with random weights; and, as their results, the latents and the text beside the data of JOB, from which it makes its caches.
Packages that are not installed, and that no step of Wan uses, are stood in for by empty modules.

It watches from outside: `hook_train_loop` is a whole step, and reads the loss last, for which it waits for the device. The
data come in the order of the files and are not shuffled, so that clips of one size follow each other.
"""

import importlib.machinery
import importlib.util
import os
import runpy
import sys
import types
from pathlib import Path

HERE = str(Path(__file__).resolve().parent)
if HERE not in sys.path:
    sys.path.insert(0, HERE)
import torch  # noqa: E402
from musubi_launch import Watch, keep_order  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

sys.path.remove(HERE)  # other packages look for modules of the names that lie here
# Augmentation of images, other kinds of adapters, sound, and video files that OpenCV cannot read.
UNUSED = (
    *("albumentations", "av", "lpips", "torchaudio"),
    *("lycoris", "lycoris.kohya", "lycoris.modules", "lycoris.modules.glora"),
)


class Absent(types.ModuleType):
    """Stands in for a module: every name in it is an empty class."""

    def __init__(self, name: str):
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)  # which transformers asks for

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def stand_in() -> None:
    """For those of the `UNUSED` packages that are not installed."""
    absent = {name for name in UNUSED if "." not in name and importlib.util.find_spec(name) is None}
    for name in UNUSED:
        if name.partition(".")[0] in absent:
            sys.modules[name] = Absent(name)


class TextEncoder(torch.nn.Module):
    """What is moved and frozen in the place of UMT5; its results come from `give_tensors`."""

    device = torch.device("cpu")
    dtype = torch.bfloat16


def load_only_wan() -> None:
    """Of its extensions, with the packages that they need, only the trainer; of its models those without an extension."""
    from extensions_built_in.sd_trainer import SDTrainerExtension
    from toolkit import extension
    from toolkit.util import get_model

    extension.get_all_extensions = lambda: [SDTrainerExtension]
    get_model.get_all_models = lambda: get_model.BUILT_IN_MODELS


def write_clips(data: Path) -> None:
    """A black image or video for every folder of the dataset, of the size that the folder's name says."""
    import cv2
    import numpy as np

    for folder in data.iterdir():
        if not folder.is_dir():
            continue
        width, height, frames = (int(part) for part in folder.name.split("x"))
        black = np.zeros((height, width, 3), np.uint8)
        if frames == 1:
            cv2.imwrite(str(folder / "clip.png"), black)
            continue
        writer = cv2.VideoWriter(str(folder / "clip.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 16, (width, height))
        for _ in range(frames):
            writer.write(black)
        writer.release()


def give_model(model: Path) -> None:
    """The transformer from `model`, a small text encoder and a small VAE."""
    from diffusers import WanTransformer3DModel
    from toolkit.models.wan21 import wan21

    def from_pretrained(folder: str, subfolder: str | None = None, torch_dtype: torch.dtype | None = None):
        return WanTransformer3DModel.from_single_file(
            str(model), config=folder, subfolder=subfolder, torch_dtype=torch_dtype, local_files_only=True
        )

    def small_vae(*_, torch_dtype: torch.dtype, **__):
        return make_vae(base_dim=8, num_res_blocks=1).to(torch_dtype)

    make_vae = wan21.AutoencoderKLWan
    wan21.WanTransformer3DModel.from_pretrained = from_pretrained
    wan21.AutoencoderKLWan.from_pretrained = small_vae
    wan21.get_umt5_encoder = lambda **_: (None, TextEncoder())


def give_tensors(data: Path) -> None:
    """Our latents for the pixels of that size, and our text, in its caches and wherever else it encodes.

    The transformer stays on its device meanwhile.
    """
    from toolkit.models.wan21.wan21 import Wan21
    from toolkit.prompt_utils import PromptEmbeds

    def encode_images(self, images, device=None, dtype=None):
        frames = [image if image.ndim == 4 else image[None] for image in images]
        names = [f"{each.shape[3]}x{each.shape[2]}x{each.shape[0]}" for each in frames]
        latents = [load_file(data / f"{name}.safetensors")["latents"] for name in names]
        return torch.stack(latents).to(device or self.device_torch, dtype or self.torch_dtype)

    def get_prompt_embeds(self, prompt):
        text = load_file(next(data.glob("*.safetensors")))["text"]
        prompts = [prompt] if isinstance(prompt, str) else prompt
        return PromptEmbeds(text.expand(len(prompts), -1, -1).to(self.device_torch, self.torch_dtype))

    def set_device_state_preset(self, preset):
        if preset not in ("cache_latents", "cache_text_encoder"):  # there is nothing to make room for
            set_preset(self, preset)

    set_preset = Wan21.set_device_state_preset
    Wan21.encode_images = encode_images
    Wan21.get_prompt_embeds = get_prompt_embeds
    Wan21.set_device_state_preset = set_device_state_preset


def watch_steps(watch: Watch) -> None:
    """Put `watch` around the trainer's own functions; it changes none of their values."""
    from extensions_built_in.sd_trainer.SDTrainer import SDTrainer

    run_step, get_loss = SDTrainer.hook_train_loop, SDTrainer.calculate_loss

    def hook_train_loop(self, batch):
        (first,) = batch
        watch.begin(first.latents)
        loss = run_step(self, batch)
        watch.end()
        return loss

    def calculate_loss(self, noise_pred, noise, noisy_latents, timesteps, batch, **options):
        arguments = {"noise_pred": noise_pred, "noise": noise, "noisy_latents": noisy_latents, "timesteps": timesteps}
        loss = get_loss(self, **arguments, batch=batch, **options)
        text = batch.prompt_embeds.text_embeds[0]
        watch.add(latents=batch.latents, noise=noise, noisy=noisy_latents, timesteps=timesteps, text=text, loss=loss)
        return loss

    SDTrainer.hook_train_loop = hook_train_loop
    SDTrainer.calculate_loss = calculate_loss


def main() -> None:
    """Prepare, then become the script."""
    checkout, job, model, records, dumps = (Path(argument).absolute() for argument in sys.argv[1:6])
    stand_in()
    sys.path.insert(0, str(checkout))
    os.chdir(checkout)  # it looks for its own folders from there
    data = job.parent / "data"
    write_clips(data)
    dumps.mkdir(parents=True, exist_ok=True)
    load_only_wan()
    give_model(model)
    give_tensors(data)
    keep_order()
    watch_steps(Watch(records, dumps))
    sys.argv = ["run.py", str(job)]
    runpy.run_path(str(checkout / "run.py"), run_name="__main__")


if __name__ == "__main__":
    main()
