"""Of a dataset: what lies beside its files: masks, control clips, and the pictures that a model is given."""

import re
from dataclasses import dataclass

from ..errors import ConfigError
from ..names import in_short
from .option import DATASET, Options, Widget, option


@dataclass(frozen=True, kw_only=True)
class BesideOptions(Options, group="dataset"):
    """Masks of the loss, and what a model is given of a sample beside noise and caption."""

    mask_folder: str = option(
        "",
        help="Folder with a mask for each file: a picture or a clip of the same name, white where the loss counts.",
        more="A path within the dataset folder, or a full path. Empty: none.",
        page="The loss stays a mean over the whole clip, so a mask that covers little makes it small. AI-Toolkit divides it by"
        " the mean of the batch's masks; Adam and its like cancel such a factor, but for gradient clipping and for a"
        " preservation beside it, which counts more here.",
        born=2,
        in_key=False,
        widget=Widget(DATASET, "mask_folder", 54),
        aitoolkit="datasets.mask_path",
        diffusion_pipe="mask_path",
    )
    mask_suffix: str = option(
        "",
        help="Ending of the masks that lie beside the files.",
        more="-masklabel: dog-masklabel.png is the mask of dog.mp4, as OneTrainer writes it. Such files are not trained on."
        " Empty: none.",
        born=2,
        in_key=False,
        widget=Widget(DATASET, "mask_suffix", 55),
    )
    alpha_mask: bool = option(
        False,
        help="What is transparent in a file does not count in the loss.",
        more="For files that have no other mask.",
        born=2,
        in_key=False,
        widget=Widget(DATASET, "alpha_mask", 56),
        aitoolkit="datasets.alpha_mask",
    )
    mask_least: float = option(
        0.0,
        help="What the loss counts where a mask is black.",
        more="0.1 lets a little of the background be learnt, which keeps it from falling apart.",
        most=1.0,
        born=2,
        in_key=False,
        widget=Widget(DATASET, "mask_least", 57, step=0.01),
        aitoolkit="datasets.mask_min_value",
    )
    mask_invert: bool = option(
        False,
        help="Masks are black where the loss counts.",
        born=2,
        in_key=False,
        widget=Widget(DATASET, "mask_invert", 58),
        aitoolkit="datasets.invert_mask",
    )
    control_clips: str = option(
        "",
        help="A folder with a control clip for each file: depth, pose or edges, frame by frame; or a picture.",
        more="A folder within the dataset folder; its files have the names of those that they belong to, and are not trained"
        " on. Their latents are cached with the others. For models that are given control clips: none of those can be trained"
        " yet, and the others refuse such a dataset.",
        born=2,
        in_key=False,
    )
    reference_pictures: str = option(
        "",
        help="The same for reference pictures: one of what is to be seen, for each file.",
        born=2,
        in_key=False,
    )
    first_frames: str = option(
        "",
        help="Image-to-video: a folder with a picture for each clip, given to the model as the first frame.",
        more="In place of the clip's own first frame. A folder within the dataset folder; its pictures have the clips' names,"
        " and are not trained on. Empty: the clip's own.",
        born=2,
        in_key=False,
        widget=Widget(DATASET, "first_frames", 60),
    )
    last_frames: str = option(
        "",
        help="The same for the last frame, with condition_on 'first and last frame'.",
        born=2,
        in_key=False,
        widget=Widget(DATASET, "last_frames", 61),
    )
    frames_file: str = option(
        "",
        help="Image-to-video: a .jsonl file in the dataset folder that names clips and the pictures given with them.",
        more='A line for each: {"file_name": "a.mp4", "first_frame": "start.png", "last_frame": "end.png"}. Clips that it does'
        " not name are given their own frames.",
        page='"control" and "reference" name a control clip and a reference picture, as control_clips and reference_pictures of'
        " a recipe do. They have no input here: no model that is given them can be trained yet, and the others refuse such a"
        " dataset.",
        born=2,
        in_key=False,
        widget=Widget(DATASET, "frames_file", 62),
    )

    @property
    def gives_frames(self) -> tuple[str, ...]:
        """The options that name pictures to give in place of the clips' own frames."""
        return tuple(name for name in ("first_frames", "last_frames", "frames_file") if getattr(self, name))

    @property
    def names_pairs(self) -> bool:
        """Whether control clips or reference pictures are looked for."""
        return bool(self.control_clips or self.reference_pictures or self.frames_file)

    @property
    def has_masks(self) -> bool:
        """Whether masks are looked for."""
        return bool(self.mask_folder or self.mask_suffix or self.alpha_mask)


def check_beside(options: BesideOptions) -> None:
    """ConfigError for a name outside of the dataset folder, or an ending that can't be one."""
    for name in (*options.gives_frames, "control_clips", "reference_pictures"):
        path = getattr(options, name).replace("\\", "/")
        if path.startswith("/") or ":" in path or ".." in path.split("/"):
            raise ConfigError(
                f"{name} is '{in_short(path)}': give a name within the dataset folder, such as starts or frames.jsonl."
            )
    if not re.fullmatch(r"[\w.-]{0,30}", options.mask_suffix):
        raise ConfigError(
            f"mask_suffix is '{in_short(options.mask_suffix)}': give what stands behind a file's name in that of its mask, "
            "such as -masklabel."
        )
