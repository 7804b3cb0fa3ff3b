"""The same clip through the host's own sampler nodes and through ours."""

import shutil

import numpy as np
from wan_train.core.sample.sampler import SampleOptions
from wan_train.tools.nano.family import STAGES, Files
from wan_train.tools.nano.on_host import HostFamily


class OwnNames(Files):
    """The family under names of its own: what a loader has given for a name, the host, which tests share, gives again."""

    def dit(self, stage):
        return self.root / "diffusion_models" / f"on_host_{stage}_noise.safetensors"

    @property
    def vae(self):
        return self.root / "vae" / "on_host_vae.safetensors"

    @property
    def text_encoder(self):
        return self.root / "text_encoders" / "on_host_text.safetensors"


def paths(files):
    return [*map(files.dit, STAGES), files.vae, files.text_encoder]


def test_the_host_shows_what_our_sampler_shows(host, files, family):
    own = OwnNames(host.base / "models")
    for source, target in zip(paths(files), paths(own), strict=True):
        shutil.copy(source, target)
    options = SampleOptions(steps=3, shift=5.0, cfg=2.0)
    asked = ["a large red circle moving left on a black background", "two blue squares"], [5, 6]
    theirs = HostFamily(host.server, host.base, own).generate(*asked, options).astype(int)
    ours = family.generate(*asked, options).astype(int)
    assert theirs.shape == ours.shape == (2, 17, 64, 64, 3)
    difference = np.abs(theirs - ours)
    assert (difference > 1).mean() < 5e-3  # random weights make much of last digits here and there
    assert np.abs(ours[0] - ours[1]).max() > 1
