"""The files that a user keeps: names, labels, content, and what is never overwritten."""

import pytest
import torch
from wan_train.core.adapters.formats import read_lora, write_lora
from wan_train.core.adapters.merge import merge
from wan_train.core.adapters.ship import ShipOptions, Source, ship
from wan_train.core.errors import ConfigError, ModelFileError
from wan_train.core.names import check_name
from wan_train.tests.core.adapters.helpers import write_random
from wan_train.tools.miniature import DiTSize

SIZE = DiTSize(num_layers=1)


@pytest.fixture
def make(tmp_path):
    """Name and seed to a LoRA file."""
    return lambda name, seed=0, rank=2, **metadata: write_random(
        tmp_path / f"{name}.safetensors", SIZE, seed, rank, **metadata
    )


@pytest.fixture
def pair(make):
    return {"high": Source(make("one", 1)), "low": Source(make("two", 2))}


def test_experts_files_are_named_labelled_and_equal_in_content(pair, tmp_path):
    options = ShipOptions(name="cat", precision="fp32", author="someone", description="a cat")
    shipment = ship(tmp_path / "loras", pair, options)
    assert [path.name for path in shipment.files.values()] == [
        "cat_high_noise.safetensors",
        "cat_low_noise.safetensors",
    ]
    assert shipment.warnings == []
    assert shipment.lines()[0] == "cat_high_noise.safetensors: 10 modules, rank 2"
    for slot, path in shipment.files.items():
        written, source = read_lora(path), read_lora(pair[slot].first)
        assert written.metadata["modelspec.title"] == written.metadata["ss_output_name"] == path.stem
        assert written.metadata["modelspec.author"] == "someone"
        assert written.metadata["modelspec.description"] == "a cat"
        assert (written.metadata["ss_network_dim"], written.metadata["ss_network_alpha"]) == ("2", "1")
        for name, module in source.modules.items():
            assert torch.equal(written.modules[name].delta(), module.delta())


def test_equal_input_gives_the_same_file_and_other_weights_another_name(pair, make, tmp_path):
    folder = tmp_path / "loras"
    first = ship(folder, pair, ShipOptions(name="cat")).files
    before = {path: path.read_bytes() for path in first.values()}
    assert ship(folder, pair, ShipOptions(name="cat")).files == first
    # One expert differs: the pair stays together under one number.
    changed = {**pair, "low": Source(make("three", 3))}
    second = ship(folder, changed, ShipOptions(name="cat")).files
    assert [path.name for path in second.values()] == [
        "cat_v2_high_noise.safetensors",
        "cat_v2_low_noise.safetensors",
    ]
    assert {path: path.read_bytes() for path in first.values()} == before
    assert len(list(folder.iterdir())) == 4


def test_a_file_that_is_no_lora_is_not_overwritten(make, tmp_path):
    (tmp_path / "cat.safetensors").write_text("precious")
    shipment = ship(tmp_path, {"single": Source(make("one"))}, ShipOptions(name="cat"))
    assert shipment.files["single"].name == "cat_v2.safetensors"
    assert (tmp_path / "cat.safetensors").read_text() == "precious"


def test_a_second_lora_is_added_with_its_strength(make, tmp_path):
    one, two = make("one", 1), make("two", 2)
    options = ShipOptions(name="sum", precision="fp32", second_strength=-0.5)
    path = ship(tmp_path, {"single": Source(one, two)}, options).files["single"]
    written = read_lora(path)
    assert written.metadata["modelspec.merged_from"] == "one.safetensors,two.safetensors"
    assert (written.ranks, written.metadata["ss_network_dim"]) == ((4,), "4")
    first, second = read_lora(one).modules, read_lora(two).modules
    for name, module in written.modules.items():
        torch.testing.assert_close(module.delta(), first[name].delta() - 0.5 * second[name].delta())


def test_the_rank_is_lowered_and_never_raised(make, tmp_path):
    source = {"single": Source(make("one", rank=4))}
    lowered = ship(tmp_path, source, ShipOptions(name="low", rank=2, precision="fp32"))
    assert read_lora(lowered.files["single"]).ranks == (2,)
    assert "lowered to rank 2" in lowered.notes["single"]
    kept = ship(tmp_path, source, ShipOptions(name="same", rank=8))
    assert read_lora(kept.files["single"]).ranks == (4,)
    both = {"single": Source(make("one", rank=4), make("two", 2, rank=4))}
    merged = ship(tmp_path, both, ShipOptions(name="both", rank=3, precision="fp32"))
    expected, _ = merge(
        [(read_lora(s), 1.0) for s in (both["single"].first, both["single"].second)], rank=3, method="svd"
    )
    for name, module in read_lora(merged.files["single"]).modules.items():
        assert module.rank == 3
        torch.testing.assert_close(module.delta(), expected[name].delta())


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
@pytest.mark.parametrize(("key_style", "written"), [("comfyui", "official"), ("kohya", "kohya")])
def test_the_file_is_what_write_lora_makes(make, tmp_path, precision, dtype, key_style, written):
    source = make("one", author="me")
    path = ship(
        tmp_path / "out", {"single": Source(source)}, ShipOptions(name="x", precision=precision, key_style=key_style)
    )
    file = read_lora(source)
    metadata = {**file.metadata, "ss_network_dim": "2", "ss_network_alpha": "1"}
    metadata |= {"modelspec.title": "x", "ss_output_name": "x"}
    expected = tmp_path / "expected.safetensors"
    write_lora(expected, file.modules, metadata=metadata, dtype=dtype, key_style=written)
    assert path.files["single"].read_bytes() == expected.read_bytes()


def test_a_pair_that_looks_wrong_is_written_with_a_warning(make, tmp_path):
    swapped = {"high": Source(make("x_low_noise", 1)), "low": Source(make("x_high_noise", 2))}
    warnings = ship(tmp_path / "out", swapped, ShipOptions()).warnings
    assert len(warnings) == 2
    assert "used for the high-noise expert, but its name says low" in warnings[0]


def test_what_makes_no_shipment_is_refused_before_anything_is_written(make, pair, tmp_path):
    folder = tmp_path / "out"
    with pytest.raises(ConfigError, match="no LoRA to write"):
        ship(folder, {}, ShipOptions())
    with pytest.raises(ConfigError, match="don't make a pair"):
        ship(folder, {"single": pair["high"], "low": pair["low"]}, ShipOptions())
    with pytest.raises(ModelFileError, match=r"absent\.safetensors does not exist"):
        ship(folder, {"high": pair["high"], "low": Source(tmp_path / "absent.safetensors")}, ShipOptions())
    assert not list(folder.glob("*"))


@pytest.mark.parametrize("changes", [{"rank": -1}, {"precision": "fp8"}, {"key_style": "fairseq"}])
def test_settings_that_mean_nothing_are_refused_by_name(changes):
    ((name, value),) = changes.items()
    with pytest.raises(ConfigError, match=rf"{name} is .*{value}"):
        ShipOptions(**changes)


@pytest.mark.parametrize(
    "name", ["../evil", "a/b", "", "x\\y", ".hidden", "name.", "name ", "a" * 101, "猫" * 64, "NUL", "com1.x", {}]
)
def test_names_that_are_no_file_names(name):
    with pytest.raises(ConfigError, match=r"lora_name (is|must be)"):
        check_name(name, "lora_name")
    with pytest.raises(ConfigError, match=r"name (is|must be)"):
        ShipOptions(name=name)


def test_names_of_every_language_are_file_names():
    assert check_name("Häschen 2.1 (neu)_猫") == "Häschen 2.1 (neu)_猫"
