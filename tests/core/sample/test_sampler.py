import math
from itertools import pairwise

import pytest
import torch
from wan_train.core.errors import ConfigError
from wan_train.core.sample.sampler import SampleOptions, initial_noise, sample, schedule, switch_step
from wan_train.core.sample.samplers import SAMPLERS

SHAPE = (2, 16, 2, 4, 6)
CONTEXT = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(1))
NEGATIVE = torch.randn(1, 8, 4, generator=torch.Generator().manual_seed(2))


class ToTarget:
    """The exact velocity towards a latent of one colour, the text's mean; keeps what it was called with."""

    def __init__(self):
        self.timesteps, self.texts, self.grad = [], [], []

    def __call__(self, latents, timesteps, context):
        self.timesteps.append(timesteps.clone())
        self.texts.append(context.clone())
        self.grad.append(torch.is_grad_enabled())
        target = context.mean((1, 2)).view(-1, 1, 1, 1, 1)
        return (latents - target) / (timesteps.view(-1, 1, 1, 1, 1) / 1000)


def colours(context):
    return context.mean((1, 2)).view(-1, 1, 1, 1, 1).expand(SHAPE)


@pytest.mark.parametrize("steps", [1, 7, 20])
def test_a_straight_path_is_followed_to_its_end(steps):
    """x = (1 - sigma) z + sigma n has a constant velocity: Euler steps of any number end at z."""
    noise, model = initial_noise(SHAPE, 3), ToTarget()
    options = SampleOptions(steps=steps)
    latents = sample(model, None, noise, CONTEXT, None, options)
    torch.testing.assert_close(latents, colours(CONTEXT), atol=1e-5, rtol=0)
    assert latents.dtype == torch.float32
    assert not latents.requires_grad
    assert torch.equal(torch.stack(model.timesteps), (1000 * schedule(options)[:-1, None]).expand(-1, 2))
    assert not any(model.grad)


def test_steps_stop_on_the_path_between_noise_and_data():
    """After k steps the latents are those of sigma_k, seen from the outside as what the next forward gets."""
    noise, sigmas, seen = initial_noise(SHAPE, 3), schedule(SampleOptions(steps=5)), []
    exact = ToTarget()

    def model(latents, timesteps, context):
        seen.append(latents.clone())
        return exact(latents, timesteps, context)

    sample(model, None, noise, CONTEXT, None, SampleOptions(steps=5))
    for sigma, latents in zip(sigmas[:-1], seen, strict=True):
        torch.testing.assert_close(latents, (1 - sigma) * colours(CONTEXT) + sigma * noise, atol=1e-5, rtol=0)


@pytest.mark.parametrize("cfg", [0.0, 3.5])
def test_guidance_goes_beyond_the_prompt_in_one_forward_a_step(cfg):
    """The field is linear in the text, so the guided end is negative + cfg (positive - negative)."""
    model = ToTarget()
    latents = sample(model, None, initial_noise(SHAPE, 3), CONTEXT, NEGATIVE, SampleOptions(steps=4, cfg=cfg))
    end = colours(NEGATIVE) + cfg * (colours(CONTEXT) - colours(NEGATIVE))
    torch.testing.assert_close(latents, end, atol=1e-5, rtol=0)
    assert [len(timesteps) for timesteps in model.timesteps] == [4] * 4
    assert torch.equal(model.texts[0], torch.cat([CONTEXT, NEGATIVE, NEGATIVE]))


def test_without_guidance_the_negative_prompt_is_not_run():
    model = ToTarget()
    plain = sample(model, None, initial_noise(SHAPE, 3), CONTEXT, None, SampleOptions(steps=3))
    assert torch.equal(plain, sample(model, None, initial_noise(SHAPE, 3), CONTEXT, NEGATIVE, SampleOptions(steps=3)))
    assert all(torch.equal(text, CONTEXT) for text in model.texts)


def test_one_text_serves_all_samples():
    options, noise = SampleOptions(steps=3, cfg=2.0), initial_noise(SHAPE, 3)
    one = sample(ToTarget(), None, noise, CONTEXT[:1], NEGATIVE, options)
    assert torch.equal(one, sample(ToTarget(), None, noise, CONTEXT[:1].repeat(2, 1, 1), NEGATIVE, options))


@pytest.mark.parametrize(
    ("shift", "boundary", "switch"),
    [
        (1.0, 0.5, 3),  # sigmas 1, 0.75, 0.5, 0.25: a sigma on the boundary is the high noise expert's
        (1.0, 0.501, 2),
        (5.0, 0.875, 2),  # 1, 0.9375, 0.833, 0.625
        (5.0, 1.0, 1),
        (5.0, 0.0, 4),
    ],
)
def test_each_expert_works_on_its_side_of_the_boundary(shift, boundary, switch):
    options = SampleOptions(steps=4, shift=shift, boundary=boundary)
    high, low = ToTarget(), ToTarget()
    sample(high, low, initial_noise(SHAPE, 3), CONTEXT, None, options)
    timesteps = [1000 * sigma for sigma in schedule(options)[:-1].tolist()]
    assert [call[0].item() for call in high.timesteps] == pytest.approx(timesteps[:switch])
    assert [call[0].item() for call in low.timesteps] == pytest.approx(timesteps[switch:])
    assert switch_step(schedule(options), boundary) == switch


def test_a_single_model_makes_all_steps_whatever_the_boundary():
    model = ToTarget()
    sample(model, None, initial_noise(SHAPE, 3), CONTEXT, None, SampleOptions(steps=6, boundary=0.9))
    assert len(model.timesteps) == 6


def test_models_of_half_precision_are_summed_in_float32():
    exact = ToTarget()
    latents = sample(
        lambda *inputs: exact(*inputs).bfloat16(), None, initial_noise(SHAPE, 3), CONTEXT, None, SampleOptions()
    )
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents, colours(CONTEXT), atol=0.05, rtol=0)


def test_on_step_counts_and_may_interrupt():
    calls, model = [], ToTarget()

    def stop_at_two(step, total):
        calls.append((step, total))
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(model, None, initial_noise(SHAPE, 3), CONTEXT, None, SampleOptions(steps=5), stop_at_two)
    assert calls == [(1, 5), (2, 5)]
    assert len(model.timesteps) == 2
    assert torch.is_grad_enabled()

    calls.clear()
    options = SampleOptions(steps=3)
    sample(model, None, initial_noise(SHAPE, 3), CONTEXT, None, options, lambda *call: calls.append(call))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_what_a_model_keeps_can_take_part_in_a_later_backward():
    """Previews run between training steps: tensors of inference mode, kept in a cache, would break the next one."""
    kept = []

    def model(latents, timesteps, context):
        kept.append(torch.ones_like(latents))
        return latents

    sample(model, None, initial_noise(SHAPE, 3), CONTEXT, None, SampleOptions(steps=1))
    weight = torch.ones(SHAPE, requires_grad=True)
    (weight * kept[0]).sum().backward()
    assert torch.equal(weight.grad, kept[0])


def test_noise_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    noise = initial_noise(SHAPE, 5)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(noise, initial_noise(SHAPE, 5))
    assert not torch.equal(noise, initial_noise(SHAPE, 6))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must lie between 1 and 1000 for euler, got 0"),
        ({"steps": 1001}, "steps must lie between"),
        ({"steps": 1000, "sampler": "uni_pc"}, "steps must lie between 1 and 999 for uni_pc, got 1000"),
        ({"sampler": "unipc"}, "the sampler 'unipc' is not known: choose one of ddim, "),
        ({"shift": 0.0}, "shift must be above 0"),
        ({"shift": math.nan}, "shift must be above 0"),
        ({"shift": math.inf}, "shift must be above 0"),
        ({"cfg": -1.0}, "cfg must be 0 or more"),
        ({"cfg": math.nan}, "cfg must be 0 or more"),
        ({"boundary": 875.0}, "boundary is a sigma between 0 and 1"),
        ({"boundary": -0.1}, "boundary is a sigma between 0 and 1"),
    ],
)
def test_bad_options_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        SampleOptions(**change)


@pytest.mark.parametrize(
    ("context", "negative", "cfg", "message"),
    [
        (CONTEXT, None, 3.0, "cfg 3.0 needs the context of a negative prompt"),
        (CONTEXT.repeat(2, 1, 1), None, 1.0, r"the context must have the shape \[2, tokens, width\].*got \[4, 8, 4\]"),
        (CONTEXT[0], None, 1.0, "the context must have the shape"),
        (CONTEXT, NEGATIVE[:, :3], 3.0, r"the negative context must .* same number of tokens, got \[1, 3, 4\]"),
        (CONTEXT, NEGATIVE.repeat(3, 1, 1), 3.0, "the negative context must"),
    ],
)
def test_texts_that_do_not_fit_are_refused(context, negative, cfg, message):
    model = ToTarget()
    with pytest.raises(ConfigError, match=message):
        sample(model, None, initial_noise(SHAPE, 3), context, negative, SampleOptions(cfg=cfg))
    assert not model.timesteps


@pytest.mark.parametrize("name", SAMPLERS.names)
def test_a_sampler_says_how_often_it_calls_the_model(name):
    """And it ends where the model points to, whatever noise it adds on the way."""
    model, options = ToTarget(), SampleOptions(steps=6, sampler=name, seeds=(3, 4))
    latents = sample(model, None, initial_noise(SHAPE, 3), CONTEXT, None, options)
    assert len(model.timesteps) == 6 * SAMPLERS.get(name).calls - (SAMPLERS.get(name).calls - 1)
    torch.testing.assert_close(latents, colours(CONTEXT), atol=5e-3 if SAMPLERS.get(name).last_sigma else 1e-5, rtol=0)


@pytest.mark.parametrize("name", SAMPLERS.names)
def test_noise_that_is_added_comes_of_the_seeds_alone(name):
    def made(*seeds):
        options = SampleOptions(steps=5, sampler=name, seeds=seeds)
        return sample(lambda x, *_: x.sin(), None, initial_noise(SHAPE, 3), CONTEXT, None, options)

    torch.manual_seed(1)
    one = made(3)
    torch.manual_seed(2)
    both = made(3, 4)
    adds_noise = name in ("lcm", "er_sde") or name.endswith(("_sde", "_ancestral"))
    assert torch.equal(one[0], both[0])
    assert torch.equal(one[1], both[1]) != adds_noise


@pytest.mark.parametrize("name", [name for name in SAMPLERS.names if not SAMPLERS.get(name).takes_equal])
def test_equal_sigmas_are_refused_before_the_model_is_asked(name):
    options = SampleOptions(steps=100, shift=1e8, sampler=name)
    assert any(here == there for here, there in pairwise(schedule(options).tolist()))
    with pytest.raises(ConfigError, match=f"^{name} cannot step from the sigma 1 to 1: fewer steps"):
        sample(lambda *_: pytest.fail("asked"), None, initial_noise(SHAPE, 3), CONTEXT, None, options)


@pytest.mark.parametrize("name", [name for name in SAMPLERS.names if SAMPLERS.get(name).first_share])
def test_steps_so_short_that_they_would_go_back_are_refused(name):
    """They begin a little below 1, where half of this scheduler's steps are."""
    options = SampleOptions(steps=600, shift=1.0, scheduler="linear_quadratic", sampler=name)
    with pytest.raises(ConfigError, match=f"^{name} cannot step from the sigma 0.9999 to 0.999917: fewer steps"):
        sample(lambda *_: pytest.fail("asked"), None, initial_noise(SHAPE, 3), CONTEXT, None, options)
