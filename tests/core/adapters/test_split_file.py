"""Files that hold both experts' LoRAs, as two files: in every known form, each half as it was, and loaded by the host."""

import json
import re

import pytest
import safetensors.torch
import torch
from wan_train.core.adapters.formats import LoraFile, parse_modules, read_lora
from wan_train.core.adapters.keys import expert_of_key, module_names
from wan_train.core.adapters.merge import check_expert
from wan_train.core.adapters.other_files import OtherFile, read_adapter, read_other
from wan_train.core.adapters.split_file import SplitOptions, split_file
from wan_train.core.errors import TWO_LORAS, ConfigError, ModelFileError, RunError
from wan_train.tests.core.adapters.test_formats import assert_same, make_modules
from wan_train.tests.core.adapters.test_host import load_in_host, make_transformer
from wan_train.tests.core.adapters.test_other_files import written
from wan_train.tests.core.adapters.test_other_kinds import WAYS

AB = ("lora_A.weight", "lora_B.weight")
KOHYA = ("lora_down.weight", "lora_up.weight")
# How each program names the modules of the first and the second expert, whether with diffusers' names, flat, and its ends.
FORMS = {
    "diffusers": ("transformer.", "transformer_2.", True, False, AB),
    "aitoolkit": ("diffusion_model.transformer_1.", "diffusion_model.transformer_2.", False, False, AB),
    "onetrainer": ("lora_transformer.", "lora_transformer_2.", True, False, KOHYA),
    "onetrainer_flat": ("lora_transformer_", "lora_transformer_2_", True, True, KOHYA),
    "onetrainer_omi": ("diffusion_model.", "diffusion_model_2.", False, False, KOHYA),
    "diffsynth": ("pipe.dit.", "pipe.dit2.", False, False, AB),
    "diffsynth_peft": ("pipe.dit.base_model.model.", "pipe.dit2.base_model.model.", False, False, AB),
}


def two_modules():
    """Two LoRAs of the same layers; the second has another rank, and lacks a block."""
    return make_modules(), make_modules(rank=2, alpha=1.0, blocks=(0, 2))


def spelled(form, alphas=True):
    first, second, is_diffusers, is_flat, ends = FORMS[form]
    tensors = {}
    for prefix, modules in zip((first, second), two_modules(), strict=True):
        for path, module in modules.items():
            name = module_names(path)[1] if is_diffusers else path
            name = prefix + (name.replace(".", "_") if is_flat else name)
            tensors[f"{name}.{ends[0]}"], tensors[f"{name}.{ends[1]}"] = module.down, module.up
            if alphas:
                tensors[f"{name}.alpha"] = torch.tensor(module.alpha)
    return tensors


def saved(path, tensors, metadata=None):
    safetensors.torch.save_file({key: value.contiguous() for key, value in tensors.items()}, path, metadata or {})
    return path


@pytest.fixture
def double(tmp_path):
    return saved(tmp_path / "style.safetensors", spelled("diffusers"))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("style", ["comfyui", "kohya"])
def test_both_halves_of_every_form_are_as_they_were(tmp_path, form, style):
    source = saved(tmp_path / "style.safetensors", spelled(form), {"modelspec.timestep_range": "0,1000"})
    made = split_file(tmp_path / "out", source, SplitOptions(key_style=style))
    assert [one.path.name for one in made] == ["style_high_noise.safetensors", "style_low_noise.safetensors"]
    for one, modules, expert in zip(made, two_modules(), ("high", "low"), strict=True):
        file = read_lora(one.path)
        assert_same(file.modules, modules)
        assert file.notes == ()
        assert file.expert == one.slot == expert
        assert json.loads(file.metadata["wantrain.made"]) == {"from": "style.safetensors", "half": expert}
        assert (file.metadata["ss_network_dim"], file.metadata["modelspec.title"]) == (
            ("4", "style_high_noise") if expert == "high" else ("2", "style_low_noise")
        )
        assert "modelspec.timestep_range" not in file.metadata
    assert made[0].lines == ("style_high_noise.safetensors: 36 modules, rank 4",)


def test_each_half_has_its_own_strength_of_the_header(tmp_path):
    header = {"transformer.lora_alpha": 2, "transformer.r": 4, "transformer_2.lora_alpha": 8, "transformer_2.r": 2}
    metadata = {"lora_adapter_metadata": json.dumps(header)}
    source = saved(tmp_path / "x.safetensors", spelled("diffusers", alphas=False), metadata)
    high, low = (read_lora(one.path) for one in split_file(tmp_path / "out", source, SplitOptions()))
    assert {module.scale for module in high.modules.values()} == {0.5}
    assert {module.scale for module in low.modules.values()} == {4.0}
    assert "lora_adapter_metadata" not in high.metadata


@pytest.mark.parametrize("way", WAYS)
def test_other_kinds_are_split_alike(tmp_path, way):
    """Read as one, the second expert's tensors would take the place of the first's without a word."""
    _, _, one = written(tmp_path, way, "one.safetensors")
    tensors = safetensors.torch.load_file(one)
    doubled = {re.sub(r"^diffusion_model", "transformer", key): tensor for key, tensor in tensors.items()}
    doubled |= {re.sub(r"^diffusion_model", "transformer_2", key): tensor * 0.5 for key, tensor in tensors.items()}
    source = saved(tmp_path / "both.safetensors", doubled)
    with pytest.raises(ModelFileError, match="holds two LoRAs"):
        read_adapter(source)
    high, low = (read_other(made.path) for made in split_file(tmp_path / "out", source, SplitOptions()))
    assert isinstance(high, OtherFile)
    for path, module in read_other(one).modules.items():
        for end, part in module.parts.items():
            assert torch.equal(high.modules[path].parts[end], part)
            assert torch.equal(low.modules[path].parts[end], part * 0.5)


def test_the_host_loads_both_files_whole_and_nothing_of_the_double_one(comfy, tmp_path, caplog):
    model = make_transformer()
    path = saved(tmp_path / "tiny_wan.safetensors", model.state_dict())
    host_model = comfy.sd.load_diffusion_model(str(path))
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for prefix in ("transformer.", "transformer_2."):
        for name, weight in model.state_dict().items():
            if weight.ndim == 2 and name.startswith("blocks."):
                key = prefix + module_names(name.removesuffix(".weight"))[1]
                tensors[f"{key}.lora_A.weight"] = torch.randn(2, weight.shape[1], generator=generator)
                tensors[f"{key}.lora_B.weight"] = torch.randn(weight.shape[0], 2, generator=generator)
    source = saved(tmp_path / "double.safetensors", tensors)
    assert load_in_host(comfy, host_model, source) == {}
    halves = {"transformer.": "high", "transformer_2.": "low"}
    caplog.clear()
    for prefix, one in zip(halves, split_file(tmp_path / "out", source, SplitOptions()), strict=True):
        patches = load_in_host(comfy, host_model, one.path)
        assert "not loaded" not in caplog.text
        wanted = parse_modules({key: value for key, value in tensors.items() if key.startswith(prefix)})[0]
        assert patches.keys() == {f"diffusion_model.{path}.weight" for path in wanted}
        for path, module in wanted.items():
            key = f"diffusion_model.{path}.weight"
            weight = model.state_dict()[f"{path}.weight"]
            changed = comfy.lora.calculate_weight([(1.0, patches[key], 1.0, None, None)], weight.clone(), key)
            torch.testing.assert_close(changed, weight + module.delta(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_number_format_stays_unless_another_is_asked_for(tmp_path, dtype):
    tensors = {key: value if key.endswith("alpha") else value.to(dtype) for key, value in spelled("aitoolkit").items()}
    source = saved(tmp_path / "x.safetensors", tensors)
    for one in split_file(tmp_path / "out", source, SplitOptions()):
        assert {module.down.dtype for module in read_lora(one.path).modules.values()} == {dtype}
    for one in split_file(tmp_path / "other", source, SplitOptions(precision="bf16")):
        assert {module.up.dtype for module in read_lora(one.path).modules.values()} == {torch.bfloat16}


def test_an_alpha_of_another_kind_in_float32_makes_no_file_larger(tmp_path):
    tensors = {}
    for prefix in ("transformer.", "transformer_2."):
        name = f"{prefix}blocks.0.self_attn.q"
        tensors[f"{name}.lokr_w1"] = torch.randn(2, 2).bfloat16()
        tensors |= {
            f"{name}.lokr_w2_a": torch.randn(8, 2).bfloat16(),
            f"{name}.lokr_w2_b": torch.randn(2, 8).bfloat16(),
        }
        tensors[f"{name}.alpha"] = torch.tensor(2.0)
    source = saved(tmp_path / "x.safetensors", tensors)
    for one in split_file(tmp_path / "out", source, SplitOptions()):
        (module,) = read_other(one.path).modules.values()
        dtypes = {end: part.dtype for end, part in module.parts.items()}
        assert dtypes.pop("alpha") == torch.float32
        assert set(dtypes.values()) == {torch.bfloat16}


def test_formats_that_differ_are_kept_whole(tmp_path):
    tensors = {
        key: value.half() if "lora_A" in key else value.bfloat16() for key, value in spelled("diffusers").items()
    }
    source = saved(tmp_path / "x.safetensors", tensors)
    for one, expert in zip(split_file(tmp_path / "out", source, SplitOptions()), ("high", "low"), strict=True):
        for path, module in read_lora(source, expert).modules.items():
            made = read_lora(one.path).modules[path]
            assert torch.equal(made.down, module.down.float())
            assert torch.equal(made.up, module.up.float())


def test_both_count_up_together_and_the_source_stays(tmp_path, double):
    before = double.read_bytes()
    options = SplitOptions(name="mine", precision="fp16")
    names = [one.path.name for one in split_file(tmp_path / "out", double, options)]
    assert [one.path.name for one in split_file(tmp_path / "out", double, options)] == names
    saved(tmp_path / "out" / names[1], spelled("diffusers"))  # another file took the name
    again = [one.path.name for one in split_file(tmp_path / "out", double, options)]
    assert again == ["mine_v2_high_noise.safetensors", "mine_v2_low_noise.safetensors"]
    assert double.read_bytes() == before


@pytest.mark.parametrize(
    ("stem", "name"), [("👩\u200d🎨 style", "👩\u200d🎨 style"), ("my? style", "my_ style"), ("??", "my_lora")]
)
def test_the_files_are_called_by_the_source_as_far_as_names_can_be_had_everywhere(tmp_path, double, stem, name):
    source = double.rename(tmp_path / f"{stem}.safetensors")
    made = split_file(tmp_path / "out", source, SplitOptions())
    assert [one.path.name for one in made] == [f"{name}_high_noise.safetensors", f"{name}_low_noise.safetensors"]


def test_a_double_file_is_refused_with_what_to_do(double):
    with pytest.raises(
        ModelFileError, match=r"style\.safetensors holds two LoRAs.*split it into a file for each"
    ) as raised:
        read_lora(double)
    assert raised.value.about == TWO_LORAS
    assert "'transformer.blocks.0" in str(raised.value)
    assert "'transformer_2.blocks.0" in str(raised.value)


def test_halves_without_a_layer_in_common_are_no_one_lora(tmp_path):
    """They were read as one LoRA, of which each expert would have got the other's layers."""
    tensors = {k: v for k, v in spelled("diffusers").items() if k.startswith("transformer.") == (".blocks.0." in k)}
    with pytest.raises(ModelFileError, match="holds two LoRAs"):
        read_lora(saved(tmp_path / "x.safetensors", tensors))


def test_two_that_cannot_be_told_apart_are_refused_for_what_they_are(tmp_path):
    modules, _ = two_modules()
    tensors = {}
    for start in ("diffusion_model", "base_model.model"):
        for path, module in modules.items():
            tensors[f"{start}.{path}.lora_A.weight"], tensors[f"{start}.{path}.lora_B.weight"] = (
                module.down,
                module.up.clone(),
            )
    tensors = {key: value.clone() for key, value in tensors.items()}
    source = saved(tmp_path / "x.safetensors", tensors)
    with pytest.raises(ModelFileError, match=r"twice, the second time as 'diffusion_model.*names do not tell"):
        read_lora(source)
    with pytest.raises(ModelFileError, match="nothing to split"):
        split_file(tmp_path / "out", source, SplitOptions())
    assert not list((tmp_path / "out").iterdir())


def test_a_single_lora_is_not_split(tmp_path, double):
    high = split_file(tmp_path / "out", double, SplitOptions())[0].path
    with pytest.raises(ModelFileError, match="holds one LoRA, and not two"):
        split_file(tmp_path / "out", high, SplitOptions())


@pytest.mark.parametrize("number", [1, 2])
def test_the_names_of_one_expert_tell_which_it_is(tmp_path, number):
    tensors = {k: v for k, v in spelled("aitoolkit").items() if f"transformer_{number}" in k}
    file = read_lora(saved(tmp_path / "x.safetensors", tensors))
    assert isinstance(file, LoraFile)
    assert file.expert == ("high" if number == 1 else "low")
    assert len(check_expert(file, "high")) == number - 1
    plain = read_lora(
        saved(tmp_path / "y.safetensors", {k.replace(f"transformer_{number}.", ""): v for k, v in tensors.items()})
    )
    assert plain.expert is None


def test_a_first_model_without_a_number_tells_nothing():
    for form, (first, second, *_) in FORMS.items():
        assert expert_of_key(f"{second}blocks.0.ffn.0.lora_A.weight") == "low", form
        assert expert_of_key(f"{first}blocks.0.ffn.0.lora_A.weight") == ("high" if form == "aitoolkit" else None)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"name": "a/b"}, "name is 'a/b'"),
        ({"precision": "fp8"}, "precision is 'fp8'"),
        ({"key_style": "x"}, "key_style is 'x'"),
    ],
)
def test_what_cannot_be_written_is_refused(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        SplitOptions(**options)


def test_a_half_that_is_not_finite_is_not_written(tmp_path):
    tensors = spelled("diffusers")
    key = next(key for key in tensors if key.startswith("transformer_2.") and "lora_A" in key)
    tensors[key] = torch.full_like(tensors[key], torch.nan)
    with pytest.raises(RunError, match="not finite"):
        split_file(tmp_path / "out", saved(tmp_path / "x.safetensors", tensors), SplitOptions())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x_high_noise.safetensors"]
