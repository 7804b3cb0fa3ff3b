"""The same clip through the host's own sampler nodes and through ours."""

import shutil

import numpy as np
from wan_train.core.sample.sampler import SampleOptions
from wan_train.tools.nano.on_host import HostFamily


def test_the_host_shows_what_our_sampler_shows(host, files, family):
    for kind in ("diffusion_models", "vae", "text_encoders"):
        shutil.copytree(files.root / kind, host.base / "models" / kind, dirs_exist_ok=True)
    options = SampleOptions(steps=3, shift=5.0, cfg=2.0)
    asked = ["a large red circle moving left on a black background", "two blue squares"], [5, 6]
    theirs = HostFamily(host.server, host.base, files).generate(*asked, options).astype(int)
    ours = family.generate(*asked, options).astype(int)
    assert theirs.shape == ours.shape == (2, 17, 64, 64, 3)
    difference = np.abs(theirs - ours)
    assert (difference > 1).mean() < 5e-3  # random weights make much of last digits here and there
    assert np.abs(ours[0] - ours[1]).max() > 1
