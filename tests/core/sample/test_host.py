"""The same latents as the real ComfyUI's own graph: its schedule, its noise, its sampler, on the same files."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from wan_train.core.data.latents import normalise_latents
from wan_train.core.sample.sampler import SampleOptions, initial_noise, sample, schedule, switch_step
from wan_train.core.sample.samplers import SAMPLERS
from wan_train.core.sample.samplers.uni_pc import UniPC
from wan_train.core.sample.schedulers import SCHEDULERS
from wan_train.core.train.skip_blocks import without_blocks
from wan_train.core.wan.checkpoint import inspect
from wan_train.core.wan.loading import load_transformer
from wan_train.tools.miniature import T2V, dit_metadata, wan_dit

SHAPE = (1, 16, 3, 8, 12)
# Of the largest value, float32 on the CPU: ten times what was measured. UniPC: the host's weights are float32, and its last
# sigma, 0.001, is known to 2 percent there; twice what was measured.
TOLERANCE = dict.fromkeys(SAMPLERS.names, 1e-05) | {"uni_pc": 1e-4, "uni_pc_bh2": 1e-4}
SCHEDULES = [
    (1, 5.0), (2, 1.0), (4, 5.0), (7, 3.0), (8, 12.0), (20, 5.0), (30, 8.0), (50, 12.0), (33, 0.1), (999, 2.7),
]  # fmt: skip


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    for seed, expert in enumerate(("high", "low")):
        save_file(wan_dit(T2V, seed=seed), folder / f"{expert}.safetensors", metadata=dit_metadata(T2V))
    return {expert: folder / f"{expert}.safetensors" for expert in ("high", "low")}


@pytest.fixture(scope="module")
def ours(paths):
    return {name: load_transformer(inspect(p), dtype=torch.float32, device="cpu") for name, p in paths.items()}


@pytest.fixture(scope="module")
def theirs(comfy, paths):
    return {name: comfy.sd.load_diffusion_model(str(path)) for name, path in paths.items()}


@pytest.fixture(scope="module")
def shifted(comfy):
    """The host's node that sets the shift."""
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    return lambda model, shift: ModelSamplingSD3().patch(model, shift)[0]


def text(seed):
    """A prompt of 20 tokens, padded with zeros."""
    context = torch.zeros(1, 512, T2V.text_dim)
    context[:, :20] = torch.randn(1, 20, T2V.text_dim, generator=torch.Generator().manual_seed(seed))
    return context


def ksampler(model, latents, options, seed, prompt, start, end, *, first, last):
    """One KSamplerAdvanced node."""
    from nodes import KSamplerAdvanced

    positive, negative = [[prompt, {}]], [[text(0), {}]]
    return KSamplerAdvanced().sample(
        model, "enable" if first else "disable", seed, options.steps, options.cfg, options.sampler,
        options.scheduler,
        positive, negative, latents, start, end, "disable" if last else "enable",
    )[0]  # fmt: skip


def host_sample(high, low, options, switch, seed, prompt):
    """The user's graph, with the steps of each expert set by hand; what it gives, as the DiT has it."""
    latents = {"samples": torch.zeros(SHAPE)}
    if switch > 0:
        latents = ksampler(high, latents, options, seed, prompt, 0, switch, first=True, last=switch == options.steps)
    if switch < options.steps:
        latents = ksampler(low, latents, options, seed, prompt, switch, 10000, first=switch == 0, last=True)
    return normalise_latents(latents["samples"][0], "wan2.1")[None]


def error(result, reference):
    return ((result - reference).abs().max() / reference.abs().max()).item()


@pytest.mark.parametrize("scheduler", SCHEDULERS.names)
@pytest.mark.parametrize("sampler", ["euler", "uni_pc"])
@pytest.mark.parametrize(("steps", "shift"), SCHEDULES)
def test_schedule_is_the_hosts_bit_for_bit(comfy, theirs, shifted, steps, shift, sampler, scheduler):
    import comfy.samplers

    model = shifted(theirs["high"], shift)
    sigmas = schedule(SampleOptions(steps=steps, shift=shift, sampler=sampler, scheduler=scheduler))
    assert sigmas.dtype == torch.float32
    host = comfy.samplers.KSampler(model, steps, "cpu", sampler, scheduler, 1.0).sigmas
    if host[0].isnan():  # one step of kl_optimal, which the host divides by none: ours is that of the others
        assert (scheduler, sigmas.tolist()) == ("kl_optimal", [1.0, 0.0])
    else:
        assert torch.equal(sigmas, host)


def test_the_samplers_that_leave_a_sigma_out_are_the_hosts(comfy):
    import comfy.samplers

    leave_out = {name for name in SAMPLERS.names if SAMPLERS.get(name).spare_steps}
    assert leave_out == comfy.samplers.KSampler.DISCARD_PENULTIMATE_SIGMA_SAMPLERS & {*SAMPLERS.names}
    assert {*SAMPLERS.names} <= {*comfy.samplers.SAMPLER_NAMES}
    assert {*SCHEDULERS.names} == {*comfy.samplers.SCHEDULER_NAMES}


def test_all_levels_of_noise_can_be_steps(comfy, theirs, shifted):
    import comfy.samplers

    host = comfy.samplers.KSampler(shifted(theirs["high"], 2.7), 1000, "cpu", "euler", "simple", 1.0)
    assert torch.equal(schedule(SampleOptions(steps=1000, shift=2.7)), host.sigmas)


@pytest.mark.parametrize("sampler", SAMPLERS.names)
def test_experts_switch_where_the_preview_node_does(theirs, shifted, sampler):
    from wan_train.nodes.host import sampling

    others = {"width": 64, "height": 64, "num_frames": 9, "cfg": 1.0, "seed": 0, "sampler": sampler}
    steps_found = set()
    for steps, shift in SCHEDULES:
        model = shifted(theirs["high"], shift)
        for boundary in (0.0, 0.25, 0.5, 0.875, 0.9, 1.0):
            node = sampling.SamplingOptions(steps=steps, shift=shift, boundary=boundary, scheduler="simple", **others)
            found = switch_step(schedule(SampleOptions(steps=steps, shift=shift, sampler=sampler)), boundary)
            assert found == sampling.switch_step(model, node)
            steps_found.add(found)
    assert len(steps_found) > 10


@pytest.mark.parametrize("seed", [0, 11, 2**32 + 1, 2**64 - 1])
def test_noise_is_the_hosts(comfy, seed):
    import comfy.sample

    noise = initial_noise(SHAPE, seed)
    with torch.random.fork_rng():
        assert torch.equal(noise, comfy.sample.prepare_noise(torch.zeros(SHAPE), seed))


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize(
    ("sampler", "steps", "shift", "boundary", "switch"),
    [
        ("euler", 6, 5.0, 0.875, 3), ("euler", 5, 12.0, 0.875, 4), ("euler", 4, 5.0, 1.0, 1), ("euler", 4, 5.0, 0.0, 4),
        ("uni_pc", 7, 5.0, 0.875, 4), ("uni_pc", 6, 12.0, 0.95, 3), ("uni_pc", 4, 5.0, 0.0, 4),
        ("dpmpp_2m", 6, 5.0, 0.875, 3), ("res_multistep", 8, 5.0, 0.875, 4), ("heun", 6, 5.0, 0.875, 3),
        ("euler_ancestral", 6, 5.0, 0.875, 3), ("lcm", 6, 5.0, 0.875, 3), ("dpmpp_sde", 6, 5.0, 0.875, 3),
        ("dpmpp_2m_sde", 8, 5.0, 0.875, 4), ("dpmpp_2m_sde", 1, 5.0, 0.0, 1), ("dpmpp_sde", 3, 12.0, 0.95, 2),
    ],
)  # fmt: skip
def test_two_experts_give_what_the_hosts_graph_gives(
    theirs, ours, shifted, sampler, cfg, steps, shift, boundary, switch
):
    options = SampleOptions(steps=steps, shift=shift, cfg=cfg, boundary=boundary, sampler=sampler, seeds=(11,))
    high, low = (shifted(theirs[name], shift) for name in ("high", "low"))
    expected = host_sample(high, low, options, switch, 11, text(1))
    negative = text(0) if cfg != 1 else None
    latents = sample(ours["high"], ours["low"], initial_noise(SHAPE, 11), text(1), negative, options)
    assert error(latents, expected) < TOLERANCE[sampler]
    # The comparison tells experts and prompts apart.
    swapped = sample(ours["low"], ours["high"], initial_noise(SHAPE, 11), text(1), negative, options)
    assert error(swapped, expected) > 20 * TOLERANCE[sampler]
    other = sample(ours["high"], ours["low"], initial_noise(SHAPE, 11), text(2), negative, options)
    assert error(other, expected) > 20 * TOLERANCE[sampler]


@pytest.mark.parametrize("sampler", SAMPLERS.names)
@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize(("name", "switch"), [("high", 5), ("low", 0)])
def test_one_model_gives_what_the_hosts_graph_gives(theirs, ours, shifted, name, switch, cfg, sampler):
    options = SampleOptions(steps=5, cfg=cfg, sampler=sampler, seeds=(12,))
    model = shifted(theirs[name], options.shift)
    expected = host_sample(model, model, options, switch, 12, text(1))
    latents = sample(ours[name], None, initial_noise(SHAPE, 12), text(1), text(0), options)
    assert error(latents, expected) < TOLERANCE[sampler]


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS.names if not SAMPLERS.get(name).last_sigma])
@pytest.mark.parametrize(("steps", "shift", "switch"), [(1, 5.0, 1), (2, 5.0, 1), (3, 12.0, 1), (24, 8.0, 12)])
def test_few_steps_and_many_are_the_hosts(theirs, ours, shifted, steps, shift, switch, sampler):
    """With two experts; the host makes no step of UniPC where there is one alone."""
    options = SampleOptions(steps=steps, shift=shift, cfg=2.0, sampler=sampler, seeds=(13,))
    sigmas = schedule(options)
    options = replace(options, boundary=float(sigmas[switch - 1]) - 1e-4)
    high, low = (shifted(theirs[name], shift) for name in ("high", "low"))
    expected = host_sample(high, low, options, switch, 13, text(1))
    latents = sample(ours["high"], ours["low"], initial_noise(SHAPE, 13), text(1), text(0), options)
    assert error(latents, expected) < TOLERANCE[sampler]


@pytest.mark.parametrize("scheduler", [name for name in SCHEDULERS.names if name != "simple"])
def test_other_schedules_give_what_the_hosts_graph_gives(theirs, ours, shifted, scheduler):
    options = SampleOptions(steps=5, cfg=2.0, sampler="dpmpp_2m", scheduler=scheduler)
    high, low = (shifted(theirs[name], options.shift) for name in ("high", "low"))
    switch = switch_step(schedule(options), options.boundary)
    assert 0 < switch < 6
    expected = host_sample(high, low, options, switch, 14, text(1))
    latents = sample(ours["high"], ours["low"], initial_noise(SHAPE, 14), text(1), text(0), options)
    assert error(latents, expected) < TOLERANCE["dpmpp_2m"]


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_skip_layer_guidance_is_the_hosts(theirs, ours, shifted, cfg):
    from comfy_extras.nodes_slg import SkipLayerGuidanceDiT

    options = SampleOptions(steps=6, cfg=cfg, skip_scale=2.5, skip_start=0.1, skip_stop=0.4)
    model = SkipLayerGuidanceDiT.execute(shifted(theirs["high"], 5.0), 2.5, 0.1, 0.4, "1").args[0]
    expected = host_sample(model, model, options, 6, 15, text(1))
    noise, negative = initial_noise(SHAPE, 15), text(0)
    skipping = partial(without_blocks, ours["high"], [1])
    latents = sample(ours["high"], None, noise, text(1), negative, options, skipping=skipping)
    assert error(latents, expected) < TOLERANCE["euler"]
    assert error(sample(ours["high"], None, noise, text(1), negative, options), expected) > 1e-3


def test_many_unipc_steps_differ_by_the_hosts_rounding_alone(theirs, ours, shifted):
    """Short steps near sigma 1, where the host's float32 weights keep three digits: 1.4e-3 was measured."""
    options = SampleOptions(steps=20, shift=12.0, sampler="uni_pc")
    high, low = (shifted(theirs[name], options.shift) for name in ("high", "low"))
    expected = host_sample(high, low, options, 14, 11, text(1))
    assert error(sample(ours["high"], ours["low"], initial_noise(SHAPE, 11), text(1), None, options), expected) < 5e-3


@pytest.fixture
def doubles():
    """The host's solver makes tensors of the default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(("steps", "shift"), [(3, 5.0), (4, 5.0), (5, 5.0), (20, 5.0), (50, 12.0), (10, 0.1)])
@pytest.mark.parametrize("part", ["whole", "expert"])
@pytest.mark.parametrize(("variant", "b"), [("bh1", float), ("bh2", math.expm1)])
@pytest.mark.usefixtures("doubles")
def test_unipc_is_the_hosts_to_the_last_digits_in_double_precision(comfy, steps, shift, part, variant, b):
    from comfy.extra_samplers.uni_pc import sample_unipc

    def velocity(latents, sigma):
        return torch.tanh(1.7 * latents) * (0.3 + sigma) - 0.6 * latents + sigma**2

    def denoised(latents, sigma):
        sigma = sigma.view(-1, 1, 1, 1, 1)
        return latents - sigma * velocity(latents, sigma)

    sigmas = schedule(SampleOptions(steps=steps, shift=shift, sampler="uni_pc")).double()
    sigmas = sigmas if part == "whole" else sigmas[:-1]  # the high noise expert's do not end at 0
    start = initial_noise(SHAPE, 4).double()
    solver, latents = UniPC(sigmas.tolist(), b), start
    for sigma in sigmas[:-1]:
        latents = solver.step(latents, velocity(latents, sigma))
    ends = sigmas.clone()  # the host writes its last sigma into it, and the sampler divides by what is there
    expected = sample_unipc(denoised, start, ends, extra_args={}, disable=True, variant=variant)
    if part == "whole":
        expected /= 1 - ends[-1]
    assert error(latents, expected) < 1e-12


def test_the_host_makes_no_unipc_step_where_one_is_asked_for(theirs, ours, shifted):
    """The one known difference: what it returns is the noise, of another size. Ours is the step that Euler makes."""
    options = SampleOptions(steps=1, sampler="uni_pc")
    noise = initial_noise(SHAPE, 11)
    unmoved = host_sample(shifted(theirs["high"], 5.0), None, options, 1, 11, text(1))
    assert error(unmoved, noise / 2**0.5) < 1e-2
    latents = sample(ours["high"], None, noise, text(1), None, options)
    assert error(latents, sample(ours["high"], None, noise, text(1), None, SampleOptions(steps=1))) < 1e-2


@pytest.mark.parametrize("sampler", SAMPLERS.names)
def test_prompts_sampled_together_are_those_sampled_apart(theirs, ours, shifted, sampler):
    options = SampleOptions(steps=5, cfg=2.0, sampler=sampler, seeds=(21, 22))
    high, low = (shifted(theirs[name], options.shift) for name in ("high", "low"))
    switch = switch_step(schedule(options), options.boundary)
    noise = torch.cat([initial_noise(SHAPE, seed) for seed in (21, 22)])
    latents = sample(ours["high"], ours["low"], noise, torch.cat([text(1), text(2)]), text(0), options)
    for row, seed, prompt in ((latents[:1], 21, text(1)), (latents[1:], 22, text(2))):
        assert error(row, host_sample(high, low, options, switch, seed, prompt)) < TOLERANCE[sampler]
