"""Runs the training script of a musubi-tuner checkout as it is, on a model of the nano family's sizes.

python musubi_nano_launch.py CHECKOUT SIZES [options of wan_train_network.py]

SIZES, a JSON object, replaces what its configuration says of the task's model; `text_dim`, for which it has no name, becomes
the default of its class. What it needs for other models and is not installed is left empty.
"""

import importlib.machinery
import importlib.util
import json
import runpy
import sys
import types
from pathlib import Path

import torch

UNUSED = ("av", "cv2")  # they read media files, of which there are none here


def main() -> None:
    """Prepare, then become the script."""
    checkout, sizes = Path(sys.argv[1]), json.loads(sys.argv[2])
    source = checkout / "src"
    script = source / "musubi_tuner" / "wan_train_network.py"
    sys.path[0] = str(source)  # in the place of this folder, whose names would hide packages
    for name in UNUSED:
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)  # transformers asks for it
    if not torch.cuda.is_available():
        torch.cuda.current_device = lambda: 0  # a default argument of its text encoder asks for it at import
    sys.argv = [str(script), *sys.argv[3:]]
    from musubi_tuner.wan.configs import WAN_CONFIGS
    from musubi_tuner.wan.modules.model import WanModel

    text_dim = sizes.pop("text_dim")
    WAN_CONFIGS[sys.argv[sys.argv.index("--task") + 1]].update(sizes)
    make = WanModel.__init__

    def make_small(self, *args, **options):
        make(self, *args, **{"text_dim": text_dim, **options})

    WanModel.__init__ = make_small
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
