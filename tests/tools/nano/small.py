"""A family whose models only have the form of the nano models; they show nothing, but fast. Rows of a bench."""

from safetensors.torch import save_file
from wan_train.core.settings.adapter import AdapterOptions
from wan_train.core.settings.loop import LoopOptions
from wan_train.core.settings.optimizer import OptimizerOptions
from wan_train.tools.mini_vae import wan_vae
from wan_train.tools.miniature import DiTSize, dit_metadata, umt5, wan_dit
from wan_train.tools.nano.concepts import CONCEPTS
from wan_train.tools.nano.family import Files
from wan_train.tools.nano.results import COLUMNS
from wan_train.tools.nano.settings import Settings

SIZE = DiTSize(dim=32, ffn_dim=64, num_heads=2, num_layers=2, text_dim=64)
STAR = CONCEPTS["star"]
QUICK = Settings(
    clips=2,
    adapter=AdapterOptions(rank=2, alpha=2.0),
    optimizer=OptimizerOptions(learning_rate=0.1),
    loop=LoopOptions(steps=2, batch_size=2, checkpoint_every=1),
)


def write_small_family(root):
    files = Files(root)
    for path in (files.dit("high"), files.vae, files.text_encoder):
        path.parent.mkdir(parents=True)
    for seed, stage in enumerate(("high", "low")):
        save_file(wan_dit(SIZE, seed), files.dit(stage), metadata=dit_metadata(SIZE))
    save_file(wan_vae(1), files.vae)
    save_file(umt5(), files.text_encoder)
    return files


def row(**values):
    """A row of results."""
    shares = dict.fromkeys(("learnt", "leaked", "bled", "kept", "kept_base"), "0.5")
    given = {"concept": "star", "seed": "1", "setting": "defaults", "seconds": "9.0", "curve": "2:0.5", **shares}
    return {name: {**given, **values}.get(name, "") for name in COLUMNS}
