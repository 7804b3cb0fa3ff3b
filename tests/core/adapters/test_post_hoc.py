"""The mean of a run's LoRAs afterwards: the two laws, and files that do not go together."""

import numpy
import pytest
import torch
from wan_train.core.adapters.formats import read_lora
from wan_train.core.adapters.post_hoc import average_loras, constant_decays, power_decays
from wan_train.core.errors import ConfigError, ModelFileError
from wan_train.tests.core.adapters.helpers import write_random
from wan_train.tools.miniature import DiTSize

SIZE = DiTSize(num_layers=1)


@pytest.fixture
def loras(tmp_path):
    paths = [tmp_path / f"{number}.safetensors" for number in range(4)]
    for seed, path in enumerate(paths):
        write_random(path, SIZE, seed, rank=4)
    return paths


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.95])
def test_a_constant_decay_is_a_geometric_sum(loras, beta):
    shares = [beta**3, (1 - beta) * beta**2, (1 - beta) * beta, 1 - beta]
    mean = average_loras(loras, constant_decays(4, beta))
    files = [read_lora(path) for path in loras]
    for name, module in mean.modules.items():
        for part in ("down", "up"):
            parts = [getattr(file.modules[name], part).double() for file in files]
            expected = sum(share * tensor for share, tensor in zip(shares, parts, strict=True))
            torch.testing.assert_close(getattr(module, part).double(), expected, rtol=1e-5, atol=1e-6)
        assert module.alpha == files[0].modules[name].alpha


@pytest.mark.parametrize("sigma", [0.05, 0.1, 0.2])
def test_the_power_law_has_the_width_that_is_asked_for(sigma):
    """The share of each file in the mean, as a distribution over the way, has the standard deviation sigma."""
    number = 4000
    decays = numpy.array([0.0, *power_decays(number, sigma)])
    shares = (1 - decays) * numpy.append(numpy.cumprod(decays[:0:-1])[::-1], 1.0)
    assert shares.sum() == pytest.approx(1.0)
    places = numpy.arange(1, number + 1) / number
    mean = (shares * places).sum()
    assert ((shares * (places - mean) ** 2).sum()) ** 0.5 == pytest.approx(sigma, rel=0.01)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: constant_decays(3, 1.0), "beta must be at least 0 and below 1, got 1."),
        (lambda: power_decays(3, 0.5), "sigma_rel must be from 0.02 to 0.28, got 0.5."),
        (lambda: average_loras([], []), "an average needs two or more"),
    ],
)
def test_what_makes_no_mean_is_refused(make, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make()


def test_files_of_different_forms_are_refused(loras, tmp_path):
    other = tmp_path / "other.safetensors"
    write_random(other, SIZE, 5, rank=8)
    with pytest.raises(ModelFileError, match=r"other\.safetensors has other layers, ranks or alphas than"):
        average_loras([loras[0], other], [0.5])
