from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from wan_train.core.adapters.setup import load_adapter
from wan_train.core.errors import ConfigError, RunError
from wan_train.core.settings.schedule import ScheduleOptions
from wan_train.core.train.prepare import prepare
from wan_train.core.train.run_folder import RunFolder
from wan_train.tests.tools.nano.small import QUICK, SIZE, STAR, write_small_family
from wan_train.tools.miniature import dit_metadata, wan_dit
from wan_train.tools.nano.evaluate import Family
from wan_train.tools.nano.lessons import teach, with_lora


def forward(model):
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 16, 3, 4, 4, generator=generator)
    context = torch.randn(2, 512, SIZE.text_dim, generator=generator)
    with torch.no_grad():
        return model(latents, torch.tensor([900.0, 300.0]), context)


@pytest.mark.parametrize("stage", ["high", "low"])
def test_a_family_with_a_lora_is_the_model_that_was_trained(stage, workshop, lessons, family):
    trained = prepare(workshop.jobs(STAR, QUICK)[stage], torch.device("cpu")).model.eval()
    load_adapter(trained, load_file(lessons[stage].lora))
    before = forward(getattr(family, stage))
    merged = with_lora(family, lessons["high"].lora, lessons["low"].lora)
    torch.testing.assert_close(forward(getattr(merged, stage)), forward(trained), rtol=1e-5, atol=1e-5)
    assert (forward(trained) - before).abs().max() > 1e-2
    assert torch.equal(forward(getattr(family, stage)), before)


def test_strength_and_missing_loras(workshop, lessons, family):
    one = with_lora(family, lessons["high"].lora, None)
    assert one.low is family.low
    assert torch.equal(forward(with_lora(family, lessons["high"].lora, None, 0.0).high), forward(family.high))
    trained = prepare(workshop.jobs(STAR, QUICK)["high"], torch.device("cpu")).model.eval()
    lora = load_file(lessons["high"].lora)
    load_adapter(trained, {name: value / 2 if "lora_B" in name else value for name, value in lora.items()})
    half = with_lora(family, lessons["high"].lora, None, 0.5)
    torch.testing.assert_close(forward(half.high), forward(trained), rtol=1e-5, atol=1e-5)


def test_a_lora_of_another_model_is_refused(lessons, tmp_path):
    small = replace(SIZE, dim=16, num_heads=1)
    files = write_small_family(tmp_path / "family")
    save_file(wan_dit(small), files.dit("high"), metadata=dit_metadata(small))
    with pytest.raises(ConfigError, match=r"star_high_noise\.safetensors is a LoRA for .* different size"):
        with_lora(Family.load(files), lessons["high"].lora, None)


def test_snapshots_are_the_lora_along_the_way(lessons):
    lesson = lessons["high"]
    assert list(lesson.snapshots) == [1, 2]
    last, lora = load_file(lesson.snapshots[2]), load_file(lesson.lora)
    assert all(torch.equal(last[name], lora[name]) for name in lora)
    assert not all(torch.equal(load_file(lesson.snapshots[1])[name], lora[name]) for name in lora)
    assert lesson.loss > 0
    assert lesson.seconds > 0


def test_a_finished_lesson_is_not_trained_again(workshop, lessons):
    folder = lessons["high"].lora.parent
    steps = (folder / "events.jsonl").read_text().count('"step", "time"')
    assert steps == 2
    assert teach(STAR, QUICK, workshop)["high"].loss == lessons["high"].loss
    assert (folder / "events.jsonl").read_text().count('"step", "time"') == steps


def test_settings_without_effect_are_told(workshop):
    settings = replace(QUICK, stages=("low",), schedule=ScheduleOptions(floor=0.5))
    assert teach(STAR, settings, workshop)["low"].warnings == ("lr_floor has no effect with lr_schedule constant.",)


def test_a_run_that_another_process_trains_is_left_alone(workshop, lessons):
    lock = RunFolder(lessons["low"].lora.parent).lock()
    assert lock.acquire()
    try:
        with pytest.raises(RunError, match="is being trained by another process"):
            teach(STAR, replace(QUICK, stages=("low",)), workshop)
    finally:
        lock.release()
