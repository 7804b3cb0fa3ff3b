"""Files of LoKr, LoHa and DoRA after the training: read, shipped, put on a model that generates."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from wan_train.core.adapters.apply import attach
from wan_train.core.adapters.formats import LoraFile
from wan_train.core.adapters.merge import check_pair
from wan_train.core.adapters.other_files import OtherFile, read_adapter, read_other
from wan_train.core.adapters.setup import adapter_state, write_adapter
from wan_train.core.adapters.ship import ShipOptions, Source, ship
from wan_train.core.adapters.transfer import model_shapes, transfer_report
from wan_train.core.errors import ConfigError, ModelFileError
from wan_train.tests.core.adapters.test_other_kinds import CONFIG, WAYS, clip, net, randomise, weight_of


def written(tmp_path, way, name="x.safetensors"):
    model, bare, parameters = net(**WAYS[way])
    randomise(parameters)
    return model, bare, write_adapter(tmp_path / name, model, metadata={"modelspec.timestep_range": "875,1000"})


@pytest.mark.parametrize("way", WAYS)
def test_attached_to_the_base_it_is_the_trained_model(way, tmp_path):
    model, bare, path = written(tmp_path, way)
    file = read_adapter(path)
    assert isinstance(file, OtherFile)
    report = transfer_report(file, model_shapes(CONFIG))
    assert len(report.placed) == 20
    assert not report.notes
    with torch.no_grad():
        wanted, plain = model(*clip()), bare(*clip())
        switch = attach(bare, file.modules)
        assert (bare(*clip()) - wanted).abs().max() < 1e-5 * wanted.abs().max()
        switch.is_on = False
        assert torch.equal(bare(*clip()), plain)


@pytest.mark.parametrize("way", WAYS)
def test_the_change_is_that_of_the_formula(way, tmp_path):
    _, bare, path = written(tmp_path, way)
    for name, module in read_other(path).modules.items():
        weight = bare.get_submodule(name).weight.detach()
        assert module.fits(tuple(weight.shape))
        wanted = weight_of(module.parts, weight) - weight.double()
        assert (module.delta(weight) - wanted).abs().max() < 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("style", ["comfyui", "kohya"])
@pytest.mark.parametrize("way", WAYS)
def test_a_pair_is_shipped_as_it_is(way, style, tmp_path):
    _, _, high = written(tmp_path, way)
    sources = {"high": Source(high), "low": Source(high)}
    options = ShipOptions(name="pair", precision="fp32", key_style=style, author="me")
    shipment = ship(tmp_path / "out", sources, options)
    assert any("the same weights" in warning for warning in shipment.warnings)
    there = read_other(shipment.files["high"])
    for name, module in read_other(high).modules.items():
        assert all(torch.equal(part, there.modules[name].parts[end]) for end, part in module.parts.items())
    assert there.metadata["modelspec.author"] == "me"
    assert there.expert == "high"
    assert ship(tmp_path / "out", sources, options).files == shipment.files  # the same weights: nothing new
    assert any(key.startswith("lora_unet_") for key in load_file(shipment.files["low"])) == (style == "kohya")


def test_it_can_be_neither_merged_nor_resized(tmp_path):
    _, _, path = written(tmp_path, "loha")
    for source, options in ((Source(path, path), {}), (Source(path), {"rank": 2})):
        with pytest.raises(ConfigError, match="of the kind loha, which can't be"):
            ship(tmp_path / "out", {"single": source}, ShipOptions(**options))


def test_a_pair_of_two_kinds_is_told_apart(tmp_path):
    _, _, loha = written(tmp_path, "loha", "high.safetensors")
    _, _, lokr = written(tmp_path, "lokr", "low.safetensors")
    assert not any("same weights" in text for text in check_pair(read_adapter(loha), read_adapter(lokr)))


def test_names_of_lycoris_are_read(tmp_path):
    model, _, path = written(tmp_path, "lokr")

    def lycoris(key):
        name, _, end = key.removeprefix("diffusion_model.").rpartition(".")
        return f"lycoris_{name.replace('.', '_')}.{end}"

    renamed = {lycoris(key): value for key, value in load_file(path).items()}
    save_file(renamed, tmp_path / "lycoris.safetensors")
    tensors = read_other(tmp_path / "lycoris.safetensors").tensors(torch.float32)
    assert all(torch.equal(value, tensors[key]) for key, value in adapter_state(model).items())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.pop("diffusion_model.blocks.0.ffn.0.lokr_w1"), "lack a part"),
        (lambda t: t.update({"diffusion_model.blocks.0.ffn.0.lokr_w2_a": torch.ones(3, 9)}), "do not fit together"),
        (lambda t: t.update({"diffusion_model.blocks.0.ffn.0.lokr_t2": torch.ones(2, 2, 1, 1)}), "lokr_t2"),
        (lambda t: t.update({"double_blocks.0.lokr_w1": torch.ones(2, 2)}), "another model"),
        (lambda t: t.update({"diffusion_model.blocks.0.ffn.0.lokr_w1": torch.full((8, 4), torch.nan)}), "finite"),
    ],
)
def test_a_file_that_is_not_whole_is_refused(change, sentence, tmp_path):
    _, _, path = written(tmp_path, "lokr")
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(ModelFileError, match=sentence):
        read_other(tmp_path / "bad.safetensors")


def test_lengths_of_rows_are_refused(tmp_path):
    _, _, path = written(tmp_path, "dora")
    tensors = load_file(path)
    tensors["diffusion_model.blocks.0.ffn.0.dora_scale"] = torch.ones(64, 1)
    save_file(tensors, tmp_path / "rows.safetensors")
    with pytest.raises(ModelFileError, match="lengths of rows"):
        read_adapter(tmp_path / "rows.safetensors")


def test_a_plain_lora_is_still_a_plain_lora(tmp_path):
    model, _, parameters = net()
    randomise(parameters)
    assert isinstance(read_adapter(write_adapter(tmp_path / "x.safetensors", model, metadata={})), LoraFile)
