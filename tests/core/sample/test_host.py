"""The same latents as the real ComfyUI's own graph: its schedule, its noise, its sampler, on the same files."""

import pytest
import torch
from safetensors.torch import save_file
from wan_train.core.data.latents import normalise_latents
from wan_train.core.sample.euler import SampleOptions, initial_noise, sample, schedule, switch_step
from wan_train.core.wan.checkpoint import inspect, load_transformer
from wan_train.tools.miniature import T2V, dit_metadata, wan_dit

SHAPE = (1, 16, 3, 8, 12)
TOLERANCE = 1e-5  # of the largest value, float32 on the CPU; ten times what was measured
SCHEDULES = [
    (1, 5.0), (2, 1.0), (4, 5.0), (7, 3.0), (8, 12.0), (20, 5.0), (30, 8.0), (50, 12.0), (33, 0.1), (1000, 2.7),
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
        model, "enable" if first else "disable", seed, options.steps, options.cfg, "euler", "simple", positive, negative,
        latents, start, end, "disable" if last else "enable",
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


@pytest.mark.parametrize(("steps", "shift"), SCHEDULES)
def test_schedule_is_the_hosts_bit_for_bit(comfy, theirs, shifted, steps, shift):
    import comfy.samplers

    sampling = shifted(theirs["high"], shift).get_model_object("model_sampling")
    sigmas = schedule(SampleOptions(steps=steps, shift=shift))
    assert sigmas.dtype == torch.float32
    assert torch.equal(sigmas, comfy.samplers.calculate_sigmas(sampling, "simple", steps))


def test_experts_switch_where_the_preview_node_does(theirs, shifted):
    from wan_train.nodes import sampling

    others = {"width": 64, "height": 64, "num_frames": 9, "cfg": 1.0, "seed": 0, "sampler": "euler"}
    steps_found = set()
    for steps, shift in SCHEDULES:
        model = shifted(theirs["high"], shift)
        for boundary in (0.0, 0.25, 0.5, 0.875, 0.9, 1.0):
            node = sampling.SamplingOptions(steps=steps, shift=shift, boundary=boundary, scheduler="simple", **others)
            found = switch_step(schedule(SampleOptions(steps=steps, shift=shift)), boundary)
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
    ("steps", "shift", "boundary", "switch"),
    [(6, 5.0, 0.875, 3), (5, 12.0, 0.875, 4), (4, 5.0, 1.0, 1), (4, 5.0, 0.0, 4)],
    ids=["middle", "shift-12", "low-after-one", "all-high"],
)
def test_two_experts_give_what_the_hosts_graph_gives(theirs, ours, shifted, cfg, steps, shift, boundary, switch):
    options = SampleOptions(steps=steps, shift=shift, cfg=cfg, boundary=boundary)
    high, low = (shifted(theirs[name], shift) for name in ("high", "low"))
    expected = host_sample(high, low, options, switch, 11, text(1))
    negative = text(0) if cfg != 1 else None
    latents = sample(ours["high"], ours["low"], initial_noise(SHAPE, 11), text(1), negative, options)
    assert error(latents, expected) < TOLERANCE
    # The comparison tells experts and prompts apart.
    swapped = sample(ours["low"], ours["high"], initial_noise(SHAPE, 11), text(1), negative, options)
    assert error(swapped, expected) > 100 * TOLERANCE
    other = sample(ours["high"], ours["low"], initial_noise(SHAPE, 11), text(2), negative, options)
    assert error(other, expected) > 100 * TOLERANCE


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize(("name", "switch"), [("high", 5), ("low", 0)])
def test_one_model_gives_what_the_hosts_graph_gives(theirs, ours, shifted, name, switch, cfg):
    options = SampleOptions(steps=5, cfg=cfg)
    model = shifted(theirs[name], options.shift)
    expected = host_sample(model, model, options, switch, 12, text(1))
    latents = sample(ours[name], None, initial_noise(SHAPE, 12), text(1), text(0), options)
    assert error(latents, expected) < TOLERANCE


def test_prompts_sampled_together_are_those_sampled_apart(theirs, ours, shifted):
    options = SampleOptions(steps=4, cfg=2.0)
    high, low = (shifted(theirs[name], options.shift) for name in ("high", "low"))
    noise = torch.cat([initial_noise(SHAPE, seed) for seed in (21, 22)])
    latents = sample(ours["high"], ours["low"], noise, torch.cat([text(1), text(2)]), text(0), options)
    for row, seed, prompt in ((latents[:1], 21, text(1)), (latents[1:], 22, text(2))):
        assert error(row, host_sample(high, low, options, 2, seed, prompt)) < TOLERANCE
