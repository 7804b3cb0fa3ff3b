"""LoRAs on models of the other kind: what the report says is what the host does."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from wan_train.core.adapters.apply import attach
from wan_train.core.adapters.formats import LoraFile, read_lora, write_lora
from wan_train.core.adapters.transfer import model_shapes, transfer_report
from wan_train.core.errors import ConfigError
from wan_train.core.wan.checkpoint import inspect
from wan_train.core.wan.config import WanConfig
from wan_train.core.wan.loading import load_transformer
from wan_train.tests.core.adapters.helpers import linear_layers, random_modules, write_model
from wan_train.tools.miniature import FLF2V_21, I2V_21, I2V_22, T2V

SIZES = {
    name: replace(size, num_layers=2)
    for name, size in {"t2v": T2V, "i2v_21": I2V_21, "i2v_22": I2V_22, "flf2v": FLF2V_21}.items()
}
HIDDEN = {"patch_embedding": (96, 64), "head.head": (64, 96)}  # of a text-to-video miniature, flattened
ARCHITECTURES = {
    "t2v": "wan2.2-t2v-a14b",
    "i2v_21": "wan2.1-i2v-14b",
    "i2v_22": "wan2.2-i2v-a14b",
    "flf2v": "wan2.1-flf2v-14b",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A file of each kind."""
    folder = tmp_path_factory.mktemp("models")
    return {name: write_model(folder / f"{name}.safetensors", size) for name, size in SIZES.items()}


@pytest.fixture(scope="module")
def hosted(comfy, models):
    """The same files loaded by the host."""
    return {name: comfy.sd.load_diffusion_model(str(path)) for name, path in models.items()}


@pytest.fixture
def make(tmp_path):
    """A LoRA on all linear layers of a kind of miniature; `more` layers by path."""

    def build(kind: str, architecture: str | None = None, **more) -> LoraFile:
        architecture = ARCHITECTURES[kind] if architecture is None else architecture
        metadata = {"modelspec.architecture": f"{architecture}/lora"} if architecture else {}
        modules = random_modules({**linear_layers(SIZES[kind]), **more})
        return read_lora(write_lora(tmp_path / f"{kind}.safetensors", modules, metadata=metadata, dtype=torch.float32))

    return build


def shapes(models, kind):
    return model_shapes(inspect(models[kind]).config)


IMAGE_PART = {"t2v": 0, "i2v_22": 0, "i2v_21": 6, "flf2v": 6}  # k_img and v_img of two blocks, two layers of img_emb


@pytest.mark.parametrize("base", SIZES)
@pytest.mark.parametrize("kind", SIZES)
def test_the_host_uses_what_the_report_says_and_names_the_rest(comfy, models, hosted, make, caplog, kind, base):
    lora = make(kind)
    report = transfer_report(lora, shapes(models, base))
    with caplog.at_level(logging.WARNING):
        loaded = load_in_host(comfy, hosted[base], lora)
    assert set(loaded) == {f"diffusion_model.{path}.weight" for path in report.placed}
    for path in report.missing:
        assert f"lora key not loaded: diffusion_model.{path}.lora_A.weight" in caplog.text
    assert len(report.missing) == (IMAGE_PART[kind] if not IMAGE_PART[base] else 0)
    assert len(report.placed) == len(lora.modules) - len(report.missing)
    # The kind of model is said where it changes, and where nothing changes nothing is said.
    from_text, on_text = kind == "t2v", base == "t2v"
    assert any("was trained for" in note for note in report.notes) == (from_text != on_text)
    assert bool(report.notes) == (from_text != on_text or bool(report.missing))


def test_the_notes_name_and_count_what_has_no_place(models, make):
    kind, rest = transfer_report(make("i2v_21"), shapes(models, "t2v")).notes
    assert kind == (
        "i2v_21.safetensors was trained for image-to-video (wan2.1-i2v-14b), and the model is a Wan text-to-video model "
        "(width 96): it is used as far as it fits."
    )
    assert rest == (
        "i2v_21.safetensors has 6 modules without a place in this model, of 26; they have no effect: 2 k_img, 2 v_img, "
        "2 img_emb. They read a start image, which this model does not take in that way."
    )
    (back,) = transfer_report(make("t2v"), shapes(models, "i2v_21")).notes
    assert "all 20 modules have a place in it" in back
    assert "the start image (k_img, v_img, img_emb) stay as they were" in back
    (newer,) = transfer_report(make("t2v"), shapes(models, "i2v_22")).notes
    assert newer.endswith("all 20 modules have a place in it.")


def test_without_metadata_only_the_modules_tell_the_kind(models, make):
    assert transfer_report(make("t2v", ""), shapes(models, "i2v_22")).notes == ()
    assert "image-to-video" in transfer_report(make("i2v_21", ""), shapes(models, "t2v")).notes[0]


@pytest.mark.parametrize("base", ["t2v", "i2v_22"])
def test_the_patch_embedding_has_another_shape_in_image_to_video(comfy, models, hosted, make, caplog, base):
    """The host keeps the weight as it is, and logs an error for it; ours leaves the module out."""
    lora = make("t2v", **HIDDEN)
    report = transfer_report(lora, shapes(models, base))
    assert report.reshaped == (("patch_embedding",) if base == "i2v_22" else ())
    assert any("patch_embedding of the shape (96, 64), which is (96, 144)" in note for note in report.notes) == (
        base == "i2v_22"
    )
    loaded = load_in_host(comfy, hosted[base], lora)
    assert len(loaded) == len(report.placed) + len(report.reshaped)
    weights = dict(hosted[base].model.named_parameters())
    with caplog.at_level(logging.ERROR):
        changed = {
            path
            for path in lora.modules
            if not torch.equal(patched(comfy, loaded, weights, path), weights[f"diffusion_model.{path}.weight"])
        }
    assert changed == set(report.placed)
    assert ("patch_embedding" in caplog.text) == (base == "i2v_22")


def load_in_host(comfy, model, lora):
    import comfy.lora
    import comfy.lora_convert

    tensors = comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(lora.path, safe_load=True))
    return comfy.lora.load_lora(tensors, comfy.lora.model_lora_keys_unet(model.model, {}))


def patched(comfy, loaded, weights, path):
    key = f"diffusion_model.{path}.weight"
    return comfy.lora.calculate_weight([(1.0, loaded[key], 1.0, None, None)], weights[key].detach().clone(), key)


OFFICIAL = {
    "1.3B": WanConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30),
    "5B": WanConfig(variant="ti2v", dim=3072, ffn_dim=14336, num_heads=24, num_layers=30, in_dim=48, out_dim=48),
    "14B": WanConfig(),
}


@pytest.mark.parametrize("base", OFFICIAL)
@pytest.mark.parametrize("size", OFFICIAL)
def test_other_sizes_are_refused_with_both_names(size, base):
    width, ffn = OFFICIAL[size].dim, OFFICIAL[size].ffn_dim
    layers = {"blocks.0.self_attn.q": (width, width), "blocks.1.ffn.2": (width, ffn)}
    lora = LoraFile(path="some/x.safetensors", modules=random_modules(layers), style="official", metadata={})
    found = model_shapes(OFFICIAL[base])
    if size == base:
        assert len(transfer_report(lora, found).placed) == 2
        return
    with pytest.raises(ConfigError) as caught:
        transfer_report(lora, found)
    message = str(caught.value)
    assert f"x.safetensors is a LoRA for a Wan model ({size}, width {width})" in message
    assert f"({base}, width {OFFICIAL[base].dim})" in message
    assert "blocks.0.self_attn.q" in message


def test_a_deeper_models_lora_is_refused(models, make):
    deep = linear_layers(replace(T2V, num_layers=3))
    lora = make("t2v", **{path: shape for path, shape in deep.items() if path.startswith("blocks.2.")})
    with pytest.raises(ConfigError, match=r"has 30 modules, but only 20 of them belong to this model.* with 2 blocks"):
        transfer_report(lora, shapes(models, "t2v"))


def test_a_lora_of_which_nothing_fits_is_refused(models, make):
    lora = make("i2v_21")
    image_only = {path: module for path, module in lora.modules.items() if "_img" in path}
    with pytest.raises(ConfigError, match="has 4 modules, but only 0 of them"):
        transfer_report(replace(lora, modules=image_only), shapes(models, "t2v"))


def forward(model):
    generator = torch.Generator().manual_seed(4)
    latents = torch.randn(1, 16, 2, 8, 8, generator=generator)
    context = torch.randn(1, 512, T2V.text_dim, generator=generator)
    with torch.no_grad():
        return model(latents, torch.tensor([500.0]), context)


def test_an_attached_lora_is_that_of_changed_weights(models, make):
    lora = make("t2v", **HIDDEN)
    info = inspect(models["t2v"])
    plain, merged, ours = (load_transformer(info, dtype=torch.float32, device="cpu") for _ in range(3))
    for path, module in lora.modules.items():
        weight = merged.get_parameter(f"{path}.weight")
        weight += 0.5 * module.delta().reshape(weight.shape)
    switch = attach(ours, lora.modules, 0.5)
    torch.testing.assert_close(forward(ours), forward(merged), atol=1e-5, rtol=1e-5)
    assert (forward(ours) - forward(plain)).abs().max() > 0.1
    switch.is_on = False
    assert torch.equal(forward(ours), forward(plain))


def test_the_preview_node_puts_on_what_fits_and_says_what_does_not(comfy, models, hosted, make):
    from wan_train.nodes.host.sampling import with_lora

    lora = make("i2v_21")
    model, notes = with_lora(hosted["t2v"], Path(lora.path), 1.0)
    report = transfer_report(lora, shapes(models, "t2v"))
    assert notes == report.notes
    assert set(model.patches) == {f"diffusion_model.{path}.weight" for path in report.placed}
    assert with_lora(hosted["i2v_21"], Path(lora.path), 1.0)[1] == ()
    narrow = {"blocks.0.self_attn.q": (64, 64)}
    other = write_lora(Path(lora.path).with_name("narrow.safetensors"), random_modules(narrow), metadata={})
    with pytest.raises(ConfigError, match=r"\(width 64\), and the model is a Wan text-to-video model \(width 96\)"):
        with_lora(hosted["t2v"], other, 1.0)
