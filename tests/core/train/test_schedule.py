import pytest
import torch
from wan_train.core.errors import ConfigError
from wan_train.core.settings.schedule import ScheduleOptions
from wan_train.core.train.schedule import learning_rate_scale


def scales(options, steps=100):
    return [learning_rate_scale(k, steps, options) for k in range(steps)]


def test_constant_with_warmup():
    values = scales(ScheduleOptions(warmup_steps=10))
    assert values[0] == 0.1
    assert values[9] == 1.0
    assert set(values[9:]) == {1.0}


@pytest.mark.parametrize("kind", ["cosine", "linear", "polynomial"])
def test_decaying_kinds_fall_from_one_to_the_floor(kind):
    values = scales(ScheduleOptions(kind=kind, floor=0.1, power=2.0, warmup_steps=5))
    assert values[5] == 1.0
    assert values[5:] == sorted(values[5:], reverse=True)
    assert 0.1 <= values[-1] < 0.12


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_same_numbers_as_torch(kind):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    reference = {
        "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=0.2),
        "linear": lambda: torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.2, total_iters=50),
    }[kind]()
    for step in range(50):
        assert learning_rate_scale(step, 50, ScheduleOptions(kind=kind, floor=0.2)) == pytest.approx(
            optimizer.param_groups[0]["lr"], abs=1e-6
        )
        optimizer.step()
        reference.step()


def test_polynomial_of_power_8_with_the_floor_its_author_meant():
    """Guide S0: power 8, floor 5e-5 of the learning rate; after a quarter a tenth of the rate is left."""
    options = ScheduleOptions(kind="polynomial", power=8.0, floor=5e-5)
    assert learning_rate_scale(250, 1000, options) == pytest.approx(0.75**8, rel=1e-3)
    assert learning_rate_scale(1000, 1000, options) == 5e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [({"floor": 2.0}, "lr_floor"), ({"warmup_steps": -1}, "warmup_steps"), ({"power": 0.0}, "lr_power")],
)
def test_bad_options_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        ScheduleOptions(**change)
