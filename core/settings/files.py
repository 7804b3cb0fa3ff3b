"""Files of a recipe: the dataset's folder, the models that are read, and the LoRAs that come out."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from ..errors import ConfigError
from ..names import check_name
from .dataset import DatasetOptions
from .option import Options, option
from .stage import Stage


@dataclass(frozen=True, kw_only=True)
class DatasetSource(DatasetOptions):
    """The folder with images, clips and captions, and how it becomes samples."""

    folder: str = option(
        help="Images and clips, each with a text file of the same name that holds its caption.",
        in_key=False,
        musubi="image_directory",
        aitoolkit="datasets.folder_path",
        simpletuner="instance_data_dir",
        diffusion_pipe="directory.path",
    )
    enabled: bool = option(
        True,
        help="Whether this dataset is used; false keeps its lines for later.",
        born=2,
        in_key=False,
        simpletuner="!disabled",
    )

    @property
    def options(self) -> DatasetOptions:
        """All but the folder, and whether it is used."""
        return DatasetOptions(**{f.name: getattr(self, f.name) for f in dataclasses.fields(DatasetOptions)})


@dataclass(frozen=True, kw_only=True)
class ModelFiles(Options, group="models"):
    """Files, or folders of sharded files. Either `single`, or `high`, `low` or both."""

    high: str = option(
        "", help="Wan 2.2 A14B: the high noise expert.", in_key=False, musubi="dit_high_noise"
    )  # fmt: skip
    low: str = option("", help="Wan 2.2 A14B: the low noise expert.", in_key=False, musubi="dit")
    single: str = option(
        "",
        help="In place of high and low: Wan 2.1, TI2V 5B.",
        in_key=False,
        musubi="dit",
        aitoolkit="model.name_or_path",
        simpletuner="pretrained_transformer_model_name_or_path",
        diffusion_pipe="model.transformer_path",
    )
    vae: str = option(help="The Wan VAE.", in_key=False, musubi="vae", simpletuner="pretrained_vae_model_name_or_path")
    text_encoder: str = option(
        help="The umT5 text encoder.", in_key=False, musubi="t5", diffusion_pipe="model.llm_path"
    )  # fmt: skip
    tokenizer: str = option(
        "",
        help="spiece.model of google/umt5-xxl, where the text encoder has no tokenizer inside or beside it.",
        more="Needed for models_t5_umt5-xxl-enc-bf16.pth alone. A umT5 .safetensors file that holds one will do as well.",
        born=2,
        in_key=False,
    )
    clip_vision: str = option("", help="Wan 2.1 I2V and FLF2V: clip_vision_h.safetensors.", in_key=False, musubi="clip")
    recovery_adapter: str = option(
        "", help="For precision ara: AI-Toolkit's accuracy recovery adapter.", in_key=False, aitoolkit="model.qtype"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.stages:
            raise ConfigError(
                "models names nothing to train: give high and low (Wan 2.2 A14B), or single (Wan 2.1, 5B)."
            )
        if self.single and (self.high or self.low):
            raise ConfigError("models has single and an expert: give either single, or high and low.")

    @property
    def stages(self) -> dict[Stage, str]:
        """The models that are trained."""
        files: dict[Stage, str] = {"high": self.high, "low": self.low, "single": self.single}
        return {stage: path for stage, path in files.items() if path}


@dataclass(frozen=True, kw_only=True)
class LoraFiles(Options, group="lora"):
    """The files that come out. Names are without folder and ending; empty: NAME_high_noise, NAME_low_noise, NAME."""

    folder: str = option(
        "",
        help="Where the LoRAs go; empty: loras in the work folder.",
        more="ComfyUI/models/loras makes them show up there.",
        in_key=False,
        musubi="output_dir",
        simpletuner="output_dir",
        diffusion_pipe="output_dir",
    )
    precision: Literal["bf16", "fp16", "fp32"] = option(
        "bf16",
        help="Number format of the files.",
        in_key=False,
        musubi="save_precision",
        aitoolkit="save.dtype",
        diffusion_pipe="save_dtype",
    )
    weights: Literal["last", "best", "average"] = option(
        "last",
        help="Which weights of a run are taken: of its last step, its best checkpoint, or the average of those it kept.",
        more="best needs held-out samples, and keep_best to have an older one still there.",
        born=2,
        in_key=False,
    )
    high: str = option(
        "", help="Name of the high noise file, without folder and ending; empty: NAME_high_noise.", in_key=False
    )
    low: str = option("", help="Name of the low noise file; empty: NAME_low_noise.", in_key=False)
    single: str = option(
        "", help="Name of a single model's file, or of one LoRA for both experts; empty: NAME.", in_key=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for stage in ("high", "low", "single"):
            if getattr(self, stage):
                check_name(getattr(self, stage), f"lora.{stage}")
