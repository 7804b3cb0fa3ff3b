import pytest
import torch
from safetensors.torch import load_file
from wan_train.core.adapters.setup import adapter_state
from wan_train.core.train.validation import validation_loss
from wan_train.tests.tools.nano.small import QUICK, STAR
from wan_train.tools.nano.pairs import Pair
from wan_train.tools.nano.quick import QuickSchool, held_out_loss
from wan_train.tools.nano.settings import changed

PAIR = Pair.of("barred+dive")


@pytest.fixture(scope="module")
def school(files):
    return QuickSchool(files)


def test_a_quick_training_gives_the_lora_of_a_run_to_the_bit(school, workshop, lessons):
    for stage, job in workshop.jobs(STAR, QUICK).items():
        pupil = school.pupil(job)
        school.train(pupil, job.loop.steps)
        of_run = load_file(lessons[stage].lora)
        own = adapter_state(pupil.model)
        assert own.keys() == of_run.keys()
        assert all(torch.equal(own[name], of_run[name]) for name in own)


def test_a_training_that_is_looked_at_goes_on_as_one_that_is_not(school, tmp_path):
    settings = changed(QUICK, "loop.steps", "4")
    data = school.data(PAIR, settings, tmp_path)
    states = []
    for steps in ((4,), (1, 3, 4)):
        pupil = school.pupil(school.job("low", settings, data))
        for step in steps:
            school.train(pupil, step)
            held_out_loss(pupil)
            school.latents({"low": pupil}, ["a circle"])
        states.append(adapter_state(pupil.model))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_held_out_loss_is_that_of_a_run(school, tmp_path):
    pupil = school.pupil(school.job("low", QUICK, school.data(PAIR, QUICK, tmp_path)))
    school.train(pupil, 2)
    loss, by_sigma, by_sample = validation_loss(pupil.trainer)
    found = held_out_loss(pupil)
    assert found.loss == pytest.approx(loss, rel=1e-5)
    assert found.by_sigma == pytest.approx(by_sigma, rel=1e-5)
    assert found.by_sample == pytest.approx(by_sample, rel=1e-5)
    assert len(found.by_sample) == 4


def test_what_is_encoded_once_is_used_again(school, tmp_path):
    first = school.data(PAIR, QUICK, tmp_path)
    (tmp_path / "latents").rename(tmp_path / "moved")
    assert school.data(PAIR, QUICK, tmp_path) == first  # made anew: the same keys and places
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert school.data(PAIR, QUICK, tmp_path) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == times
