import csv
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from wan_train.core.adapters.formats import read_lora
from wan_train.core.sample.sampler import SampleOptions, sample
from wan_train.core.wan.checkpoint import inspect
from wan_train.tests.tools.nano.small import SIZE
from wan_train.tools.miniature import dit_metadata
from wan_train.tools.nano import distil
from wan_train.tools.nano.distil import FEW_STEPS, FewStepFiles, base_path, segments
from wan_train.tools.nano.evaluate import SAMPLING
from wan_train.tools.nano.family import STAGES, Files


@pytest.fixture(scope="module")
def family_with_paths(files, tmp_path_factory):
    """A copy of the small family, to which few-step experts are added, and paths of it."""
    root = tmp_path_factory.mktemp("distil") / "family"
    shutil.copytree(files.root, root)
    distil.main(["paths", str(root / "paths.safetensors"), "--family", str(root), "--count", "3"])
    return Files(root)


def test_each_expert_makes_two_of_the_four_steps():
    assert {stage: segments(stage) for stage in STAGES} == {"high": [0, 1], "low": [2, 3]}


def test_paths_hold_what_the_sampler_gives_at_the_levels_of_the_few_steps(family, family_with_paths):
    data = load_file(family_with_paths.root / "paths.safetensors")
    assert data["paths"].shape == (3, FEW_STEPS.steps + 1, 16, 5, 8, 8)
    context, empty = distil.padded(data["contexts"].float()), family.contexts([""])
    noise = data["paths"][:, 0].float()
    end = sample(family.high, family.low, noise, context, empty, SAMPLING)
    assert torch.allclose(data["paths"][:, -1].float(), end, atol=0.05 * float(end.std()))


def test_the_path_without_guidance_is_that_of_the_prompt_alone(family):
    noise = torch.randn(1, 16, 5, 8, 8, generator=torch.Generator().manual_seed(1))
    context, empty = family.contexts(["a red circle"]), family.contexts([""])
    with torch.no_grad():
        path = base_path(family.high, family.low, noise, context, empty, SampleOptions(steps=4, shift=5.0, cfg=1.0))
    assert torch.allclose(path[-1], sample(family.high, family.low, noise, context, None, FEW_STEPS), atol=1e-4)


@pytest.mark.parametrize("stage", STAGES)
def test_an_expert_learns_its_own_steps(family_with_paths, stage, monkeypatch):
    monkeypatch.setattr(distil, "LOG_EVERY", 5)
    log = family_with_paths.root / f"{stage}.csv"
    told = ["--steps", "30", "--batch-size", "4", "--learning-rate", "5e-3", "--ema", "0.5", "--log", str(log)]
    paths = str(family_with_paths.root / "paths.safetensors")
    distil.main([stage, paths, "--family", str(family_with_paths.root), *told])
    losses = [float(row["loss"]) for row in csv.DictReader(log.open(encoding="utf-8"))]
    assert len(losses) == 6
    assert losses[-1] < 0.9 * losses[0]
    made, base = (inspect(each.dit(stage)) for each in (FewStepFiles(family_with_paths.root), family_with_paths))
    assert made.config == base.config
    assert made.identity != base.identity


def test_loras_bring_the_base_to_the_few_step_pair(family_with_paths):
    few = FewStepFiles(family_with_paths.root)
    for stage in STAGES:
        state = load_file(family_with_paths.dit(stage))
        state["blocks.0.ffn.0.weight"] += 1
        save_file(state, few.dit(stage), metadata=dit_metadata(SIZE))
    distil.main(["loras", "--family", str(family_with_paths.root), "--rank", "2"])
    for stage in STAGES:
        module = read_lora(few.lora(stage)).modules["blocks.0.ffn.0"]
        assert torch.allclose(module.delta(), torch.ones(64, 32), atol=1e-2)
