"""`wantrain preview`: the same pixels as ComfyUI's own graph with the same files, one expert in memory at a time."""

import logging
import shutil
import weakref
from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from wan_train.core.cli.main import main
from wan_train.core.errors import ConfigError, WanTrainError
from wan_train.core.generate import experts
from wan_train.core.generate.experts import from_first_frame
from wan_train.core.generate.generate import Files, VideoOptions, generate, plan_video
from wan_train.core.generate.given import fit_image, read_image
from wan_train.core.generate.trigger import trigger_word_of
from wan_train.core.settings.job import job_to_json
from wan_train.core.wan.checkpoint import inspect
from wan_train.core.wan.loading import load_transformer
from wan_train.tests.core.adapters.helpers import write_random
from wan_train.tests.core.encoders.helpers import clip_vision, load_as_host
from wan_train.tools.miniature import FLF2V_21, I2V_21, I2V_22, T2V, TI2V_5B, dit_metadata, umt5, wan_dit, wan_vae

OPTIONS = VideoOptions(
    prompt="a red circle", negative_prompt="blurry", width=48, height=32, num_frames=5, steps=3, cfg=2.0, seed=11
)
SHORT = replace(OPTIONS, steps=2, cfg=1.0, shift=5.0, num_frames=1)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Experts, models of other kinds, their LoRAs, the VAE, umT5, CLIP vision, a start and an end image."""
    folder = tmp_path_factory.mktemp("files")
    sizes = {"high": T2V, "low": T2V, "i2v": I2V_22, "clip": I2V_21, "flf2v": FLF2V_21, "ti2v": TI2V_5B}
    for seed, (name, size) in enumerate(sizes.items()):
        size = replace(size, num_layers=1)
        tensors = wan_dit(size, seed)
        if size.in_dim > size.out_dim:  # the miniature hardly looks at what it is given
            tensors["patch_embedding.weight"][:, 20:] = tensors["patch_embedding.weight"][:, :16]
        if size.image_embedding:  # nor at what CLIP saw
            tensors["blocks.0.cross_attn.v_img.weight"] *= 20
        save_file(tensors, folder / f"{name}.safetensors", metadata=dit_metadata(size))
        write_random(folder / f"lora_{name}.safetensors", size, seed)
    save_file(wan_vae(), folder / "vae.safetensors")
    save_file(umt5(), folder / "umt5.safetensors")
    save_file(clip_vision(), folder / "clip_vision_h.safetensors")
    gradient = np.linspace(0, 255, 80 * 90 * 3).reshape(80, 90, 3).astype(np.uint8)
    Image.fromarray(gradient).save(folder / "start.png")
    Image.fromarray(255 - gradient.swapaxes(0, 1)).save(folder / "end.png")
    return folder


@pytest.fixture
def files(folder):
    """Slots, with the names of models and LoRAs, to what a video is made with."""

    def build(models, loras, **more):
        return Files(
            models={slot: folder / f"{name}.safetensors" for slot, name in models.items()},
            loras={slot: folder / f"lora_{name}.safetensors" for slot, name in loras.items()},
            vae=folder / "vae.safetensors",
            text_encoder=folder / "umt5.safetensors",
            **more,
        )

    return build


PAIR = {"high": "high", "low": "low"}


@pytest.fixture(scope="module")
def host_video(comfy, folder):
    """The user's graph in the host: shift, LoRA loader, two samplers, decode; uint8 frames."""
    import comfy.utils
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3
    from wan_train.nodes import host

    from nodes import CLIPTextEncode, CLIPVisionEncode, KSamplerAdvanced

    path = folder / "umt5.safetensors"
    sizes = host.umt5_config(comfy.utils.load_torch_file(str(path), safe_load=True), path.name)
    options = {"umt5xxl_model_config": sizes}
    clip = comfy.sd.load_clip([str(path)], clip_type=comfy.sd.CLIPType.WAN, model_options=options)
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(folder / "vae.safetensors"), safe_load=True))

    vision = load_as_host(folder / "clip_vision_h.safetensors")

    def expert(name, lora, shift):
        model = comfy.sd.load_diffusion_model(str(folder / f"{name}.safetensors"))
        if lora:
            state = comfy.utils.load_torch_file(str(folder / f"lora_{name}.safetensors"), safe_load=True)
            model = comfy.sd.load_lora_for_models(model, None, state, lora, 0)[0]
        return ModelSamplingSD3().patch(model, shift)[0]

    @torch.no_grad()
    def make(names, switch, *, shift, lora=0.0, images=(), seen=()):
        """images: start and end, in the video's size; seen: by CLIP vision."""
        prompts = [CLIPTextEncode().encode(clip, text)[0] for text in (OPTIONS.prompt, OPTIONS.negative_prompt)]
        latents = {"samples": torch.zeros(1, 16, 2, 4, 6)}
        if images:
            from comfy_extras.nodes_wan import WanFirstLastFrameToVideo

            outputs = [CLIPVisionEncode().encode(vision, image, "none")[0] for image in seen]
            pairs = [[*both, None, None][:2] for both in (images, outputs)]
            made = WanFirstLastFrameToVideo.execute(*prompts, vae, 48, 32, 5, 1, *pairs[0], *pairs[1]).result
            prompts, latents = made[:2], made[2]
        o, steps = OPTIONS, OPTIONS.steps
        spans = ((names[0], 0, switch), (names[-1], switch, steps))
        for name, first, last in spans[: len(names)]:
            noise, rest = ("disable", "enable")[first == 0], ("enable", "disable")[last == steps]
            latents = KSamplerAdvanced().sample(
                expert(name, lora, shift), noise, o.seed, steps, o.cfg, "euler", "simple", *prompts, latents, first, last,
                rest,
            )[0]  # fmt: skip
        return (vae.decode(latents["samples"])[0] * 255).round().numpy()

    return make


def test_sampler_and_scheduler_are_those_that_are_named():
    made = replace(OPTIONS, sampler="uni_pc", scheduler="beta").sampling("t2v", has_experts=True)
    assert (made.sampler, made.scheduler) == ("uni_pc", "beta")
    assert OPTIONS.sampling("t2v", has_experts=True).scheduler == "simple"


def difference(frames, expected):
    return np.abs(frames.astype(float) - expected).max()


def test_two_experts_are_the_hosts_own_graph(files, host_video):
    """Shift 12 and boundary 0.875, the official ones: sigma falls below it after 2 of 3 steps."""
    off, on = generate(plan_video(files(PAIR, PAIR), replace(OPTIONS, strength=0.7)), CPU)
    assert off.shape == (5, 32, 48, 3)
    assert difference(off, host_video(("high", "low"), 2, shift=12.0)) <= 1
    assert difference(on, host_video(("high", "low"), 2, shift=12.0, lora=0.7)) <= 1
    assert np.abs(on.astype(int) - off).max() > 20


def whole(path):
    """[1, H, W, 3] in 0..1, as the host's Load Image gives it."""
    return torch.from_numpy(np.array(Image.open(path)))[None].float() / 255


def fitted(path):
    """The same in the size of the video."""
    return fit_image(read_image(path, "image"), 48, 32)[None].float() / 255


@pytest.mark.parametrize(
    ("name", "given"),
    [("i2v", ("start", "end")), ("clip", ("start",)), ("flf2v", ("start", "end"))],
)
def test_an_image_to_video_model_gets_what_the_hosts_nodes_give_it(files, host_video, folder, name, given):
    paths = {f"{kind}_image": folder / f"{kind}.png" for kind in given}
    sees = name != "i2v"
    vision = {"clip_vision": folder / "clip_vision_h.safetensors"} if sees else {}
    off, on = generate(plan_video(files({"single": name}, {"single": name}, **paths, **vision), OPTIONS), CPU)
    images, seen = [fitted(path) for path in paths.values()], [whole(path) for path in paths.values()]
    host = {"shift": 5.0, "images": images, "seen": seen if sees else ()}
    assert difference(off, host_video((name,), OPTIONS.steps, **host)) <= 1
    assert difference(on, host_video((name,), OPTIONS.steps, **host, lora=1.0)) <= 1
    key, pictures = ("seen", seen) if sees else ("images", images)
    other = host | {key: [*pictures[:-1], 1 - pictures[-1]]}
    assert difference(off, host_video((name,), OPTIONS.steps, **other)) > 10


def test_without_comparison_it_is_the_same_video_with_the_lora(files):
    both = generate(plan_video(files(PAIR, PAIR), SHORT), CPU)
    (alone,) = generate(plan_video(files(PAIR, PAIR), replace(SHORT, compare=False)), CPU)
    assert np.array_equal(alone, both[1])


def test_a_lora_for_one_expert_only_is_previewed(files):
    off, on = generate(plan_video(files(PAIR, {"low": "low"}), SHORT), CPU)
    assert not np.array_equal(off, on)


def test_one_expert_is_in_memory_at_a_time(files, monkeypatch):
    """Each is read once, although both videos need it, and the first is gone when the second is read."""
    loaded, alive = [], []
    load = experts.load_transformer

    def watched(info, **options):
        alive.append(sum(reference() is not None for reference in loaded))
        model = load(info, **options)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(experts, "load_transformer", watched)
    generate(plan_video(files(PAIR, PAIR), SHORT), CPU)
    assert alive == [0, 0]
    assert [reference() for reference in loaded] == [None, None]


def test_a_known_first_frame_stays_what_it_is(folder):
    """TI2V: seen clean with the timestep 0, and reached exactly by Euler's last step."""
    model = load_transformer(inspect(folder / "ti2v.safetensors"), dtype=torch.float32, device="cpu")
    first, latents = torch.randn(48, 1, 4, 4), torch.randn(2, 48, 3, 4, 4)
    context, timesteps = torch.randn(2, 512, 64), torch.tensor([250.0, 250.0])
    with torch.no_grad():
        velocity = from_first_frame(first)(model, latents, timesteps, context)
        seen = torch.cat([first.expand(2, -1, -1, -1, -1), latents[:, :, 1:]], dim=2)
        expected = model(seen, torch.tensor([[0.0, 250.0, 250.0]] * 2), context)
    assert torch.equal(velocity[:, :, 1:], expected[:, :, 1:])
    torch.testing.assert_close((latents - 0.25 * velocity)[:, :, :1], first.expand(2, -1, -1, -1, -1))


def command(folder, out, *more, models=("high", "low")):
    slots = models if len(models) > 1 else ("single",)
    arguments = [
        "preview", "--vae", folder / "vae.safetensors", "--text-encoder", folder / "umt5.safetensors", "--out", out,
        "--prompt", "a red circle", "--width", 48, "--height", 32, "--num-frames", 5, "--steps", 2, "--cfg", 1, "--device",
        "cpu",
    ]  # fmt: skip
    for slot, name in zip(slots, models, strict=True):
        arguments += [
            f"--{slot}",
            folder / f"{name}.safetensors",
            f"--lora-{slot}",
            folder / f"lora_{name}.safetensors",
        ]
    return [str(argument) for argument in (*arguments, *more)]


def test_the_command_writes_a_video_and_a_sheet_and_overwrites_nothing(folder, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        assert main(command(folder, tmp_path)) == 0
        assert main(command(folder, tmp_path, "--no-compare", "--fps", 8)) == 0
    assert "step 2 of 2" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "preview.mp4", "preview.png", "preview_v2.mp4", "preview_v2.png",
    ]  # fmt: skip
    for name, width, rate in (("preview", 96, 16), ("preview_v2", 48, 8)):
        with av.open(str(tmp_path / f"{name}.mp4")) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
            assert container.streams.video[0].average_rate == rate
        assert np.stack(frames).shape == (5, 32 + (16 if width == 96 else 0), width, 3)  # a pair is below its titles
        assert Image.open(tmp_path / f"{name}.png").size == (5 * 48 + 6 * 8, (width // 48) * (32 + 16 + 8) + 8)


def test_the_command_takes_images_and_clip_vision(folder, tmp_path):
    given = ["--start-image", folder / "start.png", "--end-image", folder / "end.png"]
    vision = ["--clip-vision", folder / "clip_vision_h.safetensors"]
    assert main(command(folder, tmp_path, *given, *vision, models=("flf2v",))) == 0
    assert main(command(folder, tmp_path, *given, models=("flf2v",))) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["preview.mp4", "preview.png"]


def test_a_lora_of_another_kind_is_used_and_explained(folder, tmp_path, caplog):
    """An I2V 2.1 LoRA on a T2V model: its image part is named and counted."""
    arguments = command(folder, tmp_path, models=("high",))
    arguments[arguments.index("--lora-single") + 1] = str(folder / "lora_clip.safetensors")
    assert main(arguments) == 0
    assert "4 modules without a place in this model, of 14" in caplog.text
    assert (tmp_path / "preview.mp4").exists()


START = {"start_image": "start.png"}


@pytest.mark.parametrize(
    ("models", "more", "sentence"),
    [
        (("clip",), START, r"clip.safetensors is a Wan 2\.1 model that needs the CLIP features .* clip_vision_h"),
        (("clip",), START | {"clip_vision": "vae.safetensors"}, r"is a Wan 2\.1 VAE; a CLIP vision encoder is needed"),
        (("clip",), START | {"clip_vision": "none.safetensors"}, r"none\.safetensors, which does not exist"),
        (("clip",), {"clip_vision": "clip_vision_h.safetensors"}, "makes videos from images: give a start image"),
        (
            ("i2v",),
            START | {"clip_vision": "clip_vision_h.safetensors"},
            "takes no CLIP features: leave CLIP vision out",
        ),
        (("high",), {"clip_vision": "clip_vision_h.safetensors"}, "takes no CLIP features: leave CLIP vision out"),
        (("flf2v",), START, "makes videos from images: give an end image"),
        (("i2v",), {}, "makes videos from images: give a start image"),
        (("i2v",), {"start_image": "none.png"}, r"the start image is .*none\.png, which does not exist"),
        (("high",), START, "is a text-to-video model and takes no start image: leave it out"),
        (("ti2v",), START | {"end_image": "end.png"}, "of the first frame alone and takes no end image: leave it out"),
        (("ti2v",), {}, "width is 48, but this model needs a multiple of 32"),
        (("high", "i2v"), {}, "are no two experts of one model"),
    ],
)
def test_models_that_cannot_be_previewed_are_refused_before_they_are_read(files, folder, models, more, sentence):
    slots = ("high", "low") if len(models) > 1 else ("single",)
    names = dict(zip(slots, models, strict=True))
    more = {name: folder / value for name, value in more.items()}
    with pytest.raises(WanTrainError, match=sentence):
        plan_video(files(names, names, **more), OPTIONS)


def test_a_vae_of_the_other_generation_is_refused_before_sampling(files):
    made = plan_video(files({"single": "ti2v"}, {"single": "ti2v"}), replace(OPTIONS, width=64))
    with pytest.raises(ConfigError, match=r"the VAE of Wan 2\.1, .* give wan2\.2_vae\.safetensors"):
        generate(made, CPU)


@pytest.mark.parametrize(
    ("models", "loras", "sentence"),
    [
        (
            {"high": "high"},
            {"high": "high"},
            "the models given are: high; give a single model, or the high and the low",
        ),
        (PAIR, {"single": "high"}, "a LoRA is given for 'single', but the models are high and low"),
        ({"single": "high"}, {}, "no LoRA is given"),
    ],
)
def test_files_that_make_no_set_are_refused(files, models, loras, sentence):
    with pytest.raises(ConfigError, match=sentence):
        files(models, loras)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [({"width": 60}, "width is 60"), ({"num_frames": 6}, "num_frames is 6"), ({"steps": 0}, "steps must lie")],
)
def test_settings_out_of_range_are_refused_by_name(files, changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        plan_video(files(PAIR, PAIR), replace(OPTIONS, **changes))


@pytest.fixture
def named(folder, tmp_path):
    """A LoRA that names its trigger word, and one that names none."""
    path = tmp_path / "named.safetensors"
    write_random(path, replace(T2V, num_layers=1), 0, **{"modelspec.trigger_phrase": "ohwx"})
    return {"named": path, "nameless": folder / "lora_low.safetensors"}


def test_the_loras_trigger_word_takes_the_place_of_the_placeholder(files, named):
    options = replace(SHORT, prompt="[Trigger] runs", negative_prompt="no [trigger]")
    for loras in ({"low": named["named"]}, {"high": named["nameless"], "low": named["named"]}):
        made = plan_video(replace(files(PAIR, {}.fromkeys(loras, "low")), loras=loras), options)
        assert (made.options.prompt, made.options.negative_prompt) == ("ohwx runs", "no ohwx")
    with pytest.raises(ConfigError, match=r"^prompt contains \[trigger\], but the LoRA names no trigger word"):
        plan_video(files(PAIR, {"low": "low"}), options)


def test_the_trigger_word_of_a_checkpoint_is_that_of_its_job(named, job, tmp_path):
    run = tmp_path / "run"
    adapter = run / "checkpoints" / "step_1" / "adapter.safetensors"
    adapter.parent.mkdir(parents=True)
    shutil.copy(named["nameless"], adapter)
    assert trigger_word_of(adapter) == ""
    (run / "job.json").write_text(job_to_json(replace(job, trigger_word="shp")), encoding="utf-8")
    assert trigger_word_of(adapter) == "shp"
    (run / "job.json").write_text("{", encoding="utf-8")
    assert trigger_word_of(adapter) == ""


def test_a_lora_beside_is_on_in_both_videos(files, folder):
    """The one without the new LoRA is that with the one beside it alone; the other has both."""
    few = {slot: folder / f"lora_{name}.safetensors" for slot, name in (("high", "low"), ("low", "high"))}
    both = generate(plan_video(files(PAIR, PAIR, beside=few), SHORT), CPU)
    alone = generate(plan_video(files(PAIR, {"high": "low", "low": "high"}), replace(SHORT, compare=False)), CPU)
    assert np.array_equal(both[0], alone[0])
    plain = generate(plan_video(files(PAIR, PAIR), SHORT), CPU)
    assert not np.array_equal(both[0], plain[0])
    assert not np.array_equal(both[1], plain[1])
    with pytest.raises(ConfigError, match="a LoRA is given for 'single'"):
        files(PAIR, PAIR, beside={"single": few["high"]})


def test_a_sampler_whose_package_is_missing_is_refused_before_anything_is_loaded(files, monkeypatch):
    monkeypatch.setattr("wan_train.core.packages.installed_version", lambda _: "")
    with pytest.raises(ConfigError, match=r"The package torchsde, needed for the samplers .* is not installed"):
        plan_video(files(PAIR, PAIR), replace(OPTIONS, sampler="dpmpp_sde"))
