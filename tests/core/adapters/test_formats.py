import json
import os
import sys

import pytest
import safetensors.torch
import torch
from wan_train.core import safetensors_file
from wan_train.core.adapters.formats import (
    LoraModule,
    expert_of_name,
    parse_modules,
    read_lora,
    to_kohya,
    to_official,
    to_tensors,
    weights_hash,
    write_lora,
)
from wan_train.core.adapters.keys import _BLOCK_LEAVES, _TOP_LEVEL, kohya_key, official_path, parse_key
from wan_train.core.errors import ModelFileError, RunError

DIFFUSERS = {
    "self_attn.q": "attn1.to_q",
    "self_attn.k": "attn1.to_k",
    "self_attn.v": "attn1.to_v",
    "self_attn.o": "attn1.to_out.0",
    "cross_attn.q": "attn2.to_q",
    "cross_attn.k": "attn2.to_k",
    "cross_attn.v": "attn2.to_v",
    "cross_attn.o": "attn2.to_out.0",
    "cross_attn.k_img": "attn2.add_k_proj",
    "cross_attn.v_img": "attn2.add_v_proj",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}


def make_modules(rank: int = 4, alpha: float = 4.0, blocks: tuple[int, ...] = (0, 2, 10)) -> dict[str, LoraModule]:
    generator = torch.Generator().manual_seed(0)
    return {
        f"blocks.{i}.{leaf}": LoraModule(
            down=torch.randn(rank, 8, generator=generator), up=torch.randn(12, rank, generator=generator), alpha=alpha
        )
        for i in blocks
        for leaf in DIFFUSERS
    }


def spell(modules, style: str) -> dict[str, torch.Tensor]:
    """The key dict of each trainer, spelled out here independently of the code under test."""
    tensors = {}
    for path, module in modules.items():
        _, index, leaf = path.split(".", 2)
        other = f"blocks.{index}.{DIFFUSERS[leaf]}"
        name, down, up, alpha = {
            "ours": (f"diffusion_model.{path}", "lora_A.weight", "lora_B.weight", True),
            "aitoolkit": (f"diffusion_model.{path}", "lora_A.weight", "lora_B.weight", False),
            "musubi": ("lora_unet_" + path.replace(".", "_"), "lora_down.weight", "lora_up.weight", True),
            "wanfun": ("lora_unet__" + path.replace(".", "_"), "lora_down.weight", "lora_up.weight", True),
            "diffusers": (f"transformer.{other}", "lora_A.weight", "lora_B.weight", False),
            "simpletuner": (f"diffusion_model.{other}", "lora_A.weight", "lora_B.weight", True),
            "onetrainer": ("lora_transformer_" + other.replace(".", "_"), "lora_down.weight", "lora_up.weight", True),
            "peft": (f"base_model.model.{path}", "lora_A.weight", "lora_B.weight", False),
            "peft_named": (path, "lora_A.default.weight", "lora_B.default.weight", False),
            "bare": (path, "lora_A.weight", "lora_B.weight", False),
            "model_prefix": (f"model.diffusion_model.{path}", "lora_down.weight", "lora_up.weight", True),
        }[style]
        tensors[f"{name}.{down}"], tensors[f"{name}.{up}"] = module.down, module.up
        if alpha:
            tensors[f"{name}.alpha"] = torch.tensor(module.alpha)
    return tensors


def names(folder) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def assert_same(found, expected):
    assert list(found) == list(expected)
    for path, module in expected.items():
        assert torch.equal(found[path].down, module.down), path
        assert torch.equal(found[path].up, module.up), path
        assert found[path].alpha == module.alpha, path


@pytest.mark.parametrize(
    ("trainer", "style"),
    [
        ("ours", "official"),
        ("aitoolkit", "official"),
        ("musubi", "kohya"),
        ("wanfun", "kohya"),
        ("diffusers", "diffusers"),
        ("simpletuner", "diffusers"),
        ("onetrainer", "kohya"),
        ("peft", "peft"),
        ("peft_named", "peft"),
        ("bare", "bare"),
        ("model_prefix", "official"),
    ],
)
def test_every_trainers_file_gives_the_same_modules(tmp_path, trainer, style):
    modules = make_modules()
    path = tmp_path / "lora.safetensors"
    safetensors.torch.save_file(spell(modules, trainer), path, {"who": trainer})
    file = read_lora(path)
    assert_same(file.modules, modules)
    assert file.style == style
    assert file.metadata == {"who": trainer}
    assert file.ranks == (4,)


def test_alpha_is_the_files_or_else_the_rank():
    modules = make_modules(alpha=2.0)
    assert {m.scale for m in parse_modules(spell(modules, "musubi"))[0].values()} == {0.5}
    assert {m.scale for m in parse_modules(spell(modules, "aitoolkit"))[0].values()} == {1.0}


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"transformer.lora_alpha": 2, "transformer.r": 4}, 0.5),
        ({"transformer.lora_alpha": 8, "transformer.use_rslora": True}, 4.0),
        ({"transformer.r": 4}, 1.0),
    ],
)
def test_alpha_of_diffusers_header_counts(config, scale):
    metadata = {"lora_adapter_metadata": json.dumps(config)}
    modules, _ = parse_modules(spell(make_modules(), "diffusers"), metadata)
    assert {module.scale for module in modules.values()} == {scale}


def test_alpha_exceptions_of_diffusers_header_count():
    config = {"transformer.lora_alpha": 4, "transformer.alpha_pattern": {"blocks.2.attn1.to_q": 1}}
    modules, _ = parse_modules(spell(make_modules(), "diffusers"), {"lora_adapter_metadata": json.dumps(config)})
    assert modules["blocks.2.self_attn.q"].scale == 0.25
    assert modules["blocks.2.self_attn.k"].scale == 1.0


def test_alpha_exceptions_may_be_the_end_of_a_name():
    config = {"lora_alpha": 4, "alpha_pattern": {"to_q": 2, "attn2.to_k": 1, "q": 8, "self_attn.v": 3}}
    modules, _ = parse_modules(spell(make_modules(), "diffusers"), {"lora_adapter_metadata": json.dumps(config)})
    for path, module in modules.items():
        ends = {".self_attn.q": 2, ".cross_attn.q": 2, ".cross_attn.k": 1, ".self_attn.v": 3}
        assert module.alpha == next((alpha for end, alpha in ends.items() if path.endswith(end)), 4), path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, r"adapter settings that are not JSON \(it is nested too deeply\)"),
        ('{"lora_alpha": NaN}', "has the alpha nan for"),
        ('{"lora_alpha": 1e999}', "has the alpha inf for"),
        ('{"lora_alpha": 1' + "0" * 400 + "}", "has the alpha inf for"),
        ('{"alpha_pattern": 5}', None),
        ('{"alpha_pattern": {"to_q": "x"}}', None),
        ("5", None),
    ],
)
def test_settings_that_do_harm(text, message):
    tensors = spell(make_modules(), "diffusers")
    if message is None:
        assert {module.scale for module in parse_modules(tensors, {"lora_adapter_metadata": text})[0].values()} == {1.0}
        return
    with pytest.raises(ModelFileError, match=message):
        parse_modules(tensors, {"lora_adapter_metadata": text})


def test_settings_beside_the_file_in_another_encoding(tmp_path):
    path = tmp_path / "adapter_model.safetensors"
    safetensors.torch.save_file(spell(make_modules(), "peft"), path)
    (tmp_path / "adapter_config.json").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(ModelFileError, match=r"adapter_model\.safetensors has adapter settings that are not JSON"):
        read_lora(path)


def test_alpha_beside_a_peft_file_counts(tmp_path):
    path = tmp_path / "adapter_model.safetensors"
    safetensors.torch.save_file(spell(make_modules(), "peft"), path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 2, "r": 4}), encoding="utf-8")
    assert {module.scale for module in read_lora(path).modules.values()} == {0.5}
    (tmp_path / "adapter_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelFileError, match="adapter settings that are not JSON"):
        read_lora(path)


def test_flat_names_are_unambiguous():
    leaves = [f"{stack}.{i}.{leaf}" for stack in ("blocks", "vace_blocks") for i in (0, 12) for leaf in _BLOCK_LEAVES]
    for path in [*leaves, *_TOP_LEVEL]:
        for prefix in ("lora_unet_", "lora_unet__"):
            assert official_path(prefix + path.replace(".", "_")) == (path, "kohya")
        assert official_path(f"diffusion_model.{path}") == (path, "official")
    assert len({path.replace(".", "_") for path in [*leaves, *_TOP_LEVEL]}) == len(leaves) + len(_TOP_LEVEL)
    for official, diffusers in _TOP_LEVEL.items():
        found = official_path(f"transformer.{diffusers}")
        assert found is not None
        assert found[0] == official


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("lora_unet_blocks_31_cross_attn_k_img.lora_down.weight", "blocks.31.cross_attn.k_img"),
        ("lora_unet_time_embedding_2.lora_up.weight", "time_embedding.2"),
        ("lora_unet_time_projection_1.alpha", "time_projection.1"),
        ("lora_unet__blocks_0_ffn_2.lora_up.weight", "blocks.0.ffn.2"),
        ("diffusion_model.head.head.lora_A.weight", "head.head"),
        ("pipe.dit.blocks.3.ffn.0.lora_A.default.weight", "blocks.3.ffn.0"),
        ("base_model.model.transformer.blocks.3.ffn.net.0.proj.lora_B.weight", "blocks.3.ffn.0"),
        ("diffusion_model.blocks.3.ffn.0_lora.up.weight", "blocks.3.ffn.0"),
    ],
)
def test_keys_by_hand(key, path):
    parsed = parse_key(key)
    assert parsed is not None
    assert parsed.path == path


@pytest.mark.parametrize(
    "key",
    ["lora_te_blocks_0_self_attn_q.lora_up.weight", "blocks.0.attn.qkv.lora_A.weight", "blocks.x.ffn.0.alpha", "ffn"],
)
def test_keys_of_no_wan_module(key):
    assert parse_key(key) is None


def test_names_agree_with_diffusers():
    from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_wan_lora_to_diffusers

    wanted = {leaf for leaf in DIFFUSERS if "_img" not in leaf}  # diffusers drops image keys it did not expect
    modules = {p: m for p, m in make_modules(blocks=(0, 1)).items() if p.split(".", 2)[2] in wanted}
    converted = _convert_non_diffusers_wan_lora_to_diffusers(to_tensors(modules))
    assert_same(parse_modules(converted)[0], modules)


def test_conversions_are_inverse():
    modules = make_modules(alpha=2.0)
    kohya = to_kohya(spell(modules, "ours"))
    assert kohya.keys() == spell(modules, "musubi").keys()
    assert kohya_key("blocks.0.ffn.0", "alpha") in kohya
    official = to_official(kohya)
    assert official.keys() == spell(modules, "ours").keys()
    assert all(torch.equal(official[key], tensor) for key, tensor in spell(modules, "ours").items())


@pytest.mark.parametrize(
    ("suffix", "method"),
    [
        ("lokr_w1", "LoKr"),
        ("hada_w1_a", "LoHa"),
        ("oft_blocks", "OFT"),
        ("dora_scale", "DoRA"),
        ("lora_magnitude_vector", "DoRA"),
        ("lora_mid.weight", "LoCon"),
        ("a1.weight", "GLoRA"),
        ("lora_B.bias", "LoRA with biases"),
        ("diff_b", "full-weight difference"),
    ],
)
def test_other_methods_are_refused_by_name(tmp_path, suffix, method):
    path = tmp_path / "x.safetensors"
    tensors = {**spell(make_modules(), "ours"), f"diffusion_model.blocks.0.self_attn.q.{suffix}": torch.zeros(4)}
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(ModelFileError, match=f"x.safetensors is a {method}.* file"):
        read_lora(path)


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        (["head.modulation", "patch_embedding.weight"], "a Wan transformer"),
        (["model.diffusion_model.head.modulation"], "a Wan transformer"),
        (["encoder.conv1.weight", "decoder.conv1.weight"], "a VAE"),
        (["shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight"], "a T5 text encoder"),
        (["double_blocks.0.img_attn.qkv.weight"], "a checkpoint of another model"),
        (["latents_1x8x8_float32"], "a cache of latents"),
        (["fc.weight"], "holds no LoRA weights, its first key is 'fc.weight'"),
        ([], "holds no LoRA weights, it is empty"),
    ],
)
def test_files_that_are_no_lora_are_named(tmp_path, keys, what):
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file({key: torch.zeros(2) for key in keys}, path)
    with pytest.raises(ModelFileError, match=what):
        read_lora(path)


def test_lora_of_another_model_is_refused(tmp_path):
    path = tmp_path / "flux.safetensors"
    safetensors.torch.save_file({"transformer.single_blocks.0.linear1.lora_A.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(ModelFileError, match=r"single_blocks\.0\.linear1.* made for another model"):
        read_lora(path)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_truncated_files_are_refused(tmp_path, kept):
    path = write_lora(tmp_path / "x.safetensors", make_modules(), metadata={})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ModelFileError, match=r"damaged, cut short or not a \.safetensors file"):
        read_lora(path)


def test_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(ModelFileError, match="does not exist"):
        read_lora(tmp_path / "none.safetensors")
    torch.save({"a": 1}, tmp_path / "lora.pt")
    with pytest.raises(ModelFileError, match=r"not a \.safetensors file"):
        read_lora(tmp_path / "lora.pt")


Q = "diffusion_model.blocks.0.self_attn.q"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({f"{Q}.lora_A.weight": torch.ones(2, 4)}, r"lacks the up \(lora_B\) weight of blocks.0.self_attn.q"),
        ({f"{Q}.lora_B.weight": torch.ones(2, 4)}, r"lacks the down \(lora_A\) weight"),
        ({f"{Q}.lora_A.weight": torch.ones(2, 4), f"{Q}.lora_B.weight": torch.ones(4, 3)}, "do not fit together"),
        ({f"{Q}.lora_A.weight": torch.ones(2, 4, 1, 2, 2), f"{Q}.lora_B.weight": torch.ones(4, 2)}, "convolution"),
        (
            {f"{Q}.lora_A.weight": torch.ones(2, 4), "transformer.blocks.0.attn1.to_q.lora_A.weight": torch.ones(2, 4)},
            "blocks.0.self_attn.q twice",
        ),
        (
            {
                f"{Q}.lora_A.weight": torch.ones(2, 4),
                f"{Q}.lora_B.weight": torch.ones(4, 2),
                f"{Q}.alpha": torch.ones(2),
            },
            "alpha for blocks.0.self_attn.q that is not one number",
        ),
        ({f"{Q}.lora_A.weight": torch.ones(0, 4), f"{Q}.lora_B.weight": torch.ones(4, 0)}, "do not fit together"),
        ({f"{Q}.lora_A.weight": torch.ones(2, 0), f"{Q}.lora_B.weight": torch.ones(4, 2)}, "do not fit together"),
        (
            {f"{Q}.lora_A.weight": torch.ones(2, 4, dtype=torch.int64), f"{Q}.lora_B.weight": torch.ones(4, 2)},
            "holds whole numbers as the weights of blocks.0.self_attn.q",
        ),
        *(
            (
                {
                    f"{Q}.lora_A.weight": torch.ones(2, 4),
                    f"{Q}.lora_B.weight": torch.ones(4, 2),
                    f"{Q}.alpha": torch.tensor(value),
                },
                f"has the alpha {value} for blocks.0.self_attn.q",
            )
            for value in (float("nan"), float("inf"))
        ),
        (
            {f"diffusion_model.blocks.{'9' * 5000}.self_attn.q.lora_A.weight": torch.ones(2, 4)},
            "belongs to no module of a Wan transformer",
        ),
    ],
)
def test_broken_modules_are_refused(tensors, message):
    with pytest.raises(ModelFileError, match=message):
        parse_modules(tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_write_and_read_back(tmp_path, dtype):
    modules = make_modules(alpha=2.0)
    path = write_lora(tmp_path / "new" / "x.safetensors", modules, metadata={"name": "caf\u00e9"}, dtype=dtype)
    file = read_lora(path)
    cast = {p: LoraModule(down=m.down.to(dtype), up=m.up.to(dtype), alpha=m.alpha) for p, m in modules.items()}
    assert_same(file.modules, cast)
    assert file.style == "official"
    assert file.metadata["name"] == "caf\u00e9"
    assert file.metadata["format"] == "pt"
    with safetensors.safe_open(str(path), framework="pt") as raw:
        keys = set(raw.keys())
        assert raw.get_tensor(f"{Q}.alpha").shape == ()
    assert {f"{Q}.lora_A.weight", f"{Q}.lora_B.weight", f"{Q}.alpha"} <= keys
    assert len(keys) == 3 * len(modules)


def test_equal_input_gives_equal_bytes(tmp_path):
    modules = make_modules()
    metadata = {f"ss_{i}": str(i) for i in range(50)}
    backwards = dict(reversed(metadata.items()))
    one = write_lora(tmp_path / "1.safetensors", modules, metadata=metadata).read_bytes()
    two = write_lora(tmp_path / "2.safetensors", dict(reversed(modules.items())), metadata=backwards).read_bytes()
    assert one == two
    assert (8 + int.from_bytes(one[:8], "little")) % 8 == 0


def test_kohya_style_and_its_hash(tmp_path):
    modules = make_modules(alpha=2.0)
    path = write_lora(tmp_path / "x.safetensors", modules, metadata={}, dtype=torch.float32, key_style="kohya")
    file = read_lora(path)
    assert file.style == "kohya"
    assert_same(file.modules, modules)
    assert weights_hash(modules, torch.float32, "kohya") == file.metadata["sshs_model_hash"]
    assert weights_hash(modules, torch.bfloat16, "kohya") != file.metadata["sshs_model_hash"]


def test_hashes_are_kohyas(tmp_path):
    import hashlib

    big = LoraModule(down=torch.randn(64, 4000), up=torch.randn(4000, 64), alpha=64.0)
    modules = {**make_modules(), "blocks.1.ffn.0": big}
    metadata = {"ss_seed": "5", "workflow": "x" * 10000}
    file = read_lora(write_lora(tmp_path / "x.safetensors", modules, metadata=metadata, dtype=torch.float32))
    # kohya: serialise with the ss_ keys only, hash what follows the header, and 64 KiB at 1 MiB of the whole
    blob = safetensors.torch.save(to_tensors(modules), {"ss_seed": "5"})
    start = 8 + int.from_bytes(blob[:8], "little")
    assert len(blob) > 0x110000
    assert file.metadata["sshs_model_hash"] == hashlib.sha256(blob[start:]).hexdigest()
    assert file.metadata["sshs_legacy_hash"] == hashlib.sha256(blob[0x100000:0x110000]).hexdigest()[:8]
    assert file.metadata["modelspec.hash_sha256"] == "0x" + file.metadata["sshs_model_hash"]


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_lora(tmp_path / "x.safetensors", make_modules(), metadata={})
    old = path.read_bytes()

    def full_disk(tensors):
        yield memoryview(b"some bytes")
        raise OSError(28, "No space left on device")

    chunks = safetensors_file._chunks
    monkeypatch.setattr(safetensors_file, "content_hashes", lambda *_: ("", ""))
    monkeypatch.setattr("wan_train.core.adapters.formats.content_hashes", lambda *_: ("", ""))
    monkeypatch.setattr(safetensors_file, "_chunks", full_disk)
    with pytest.raises(RunError, match=r"The disk with .* is full .* while writing x.safetensors: make room"):
        write_lora(path, make_modules(rank=2), metadata={})
    assert path.read_bytes() == old
    assert names(tmp_path) == ["x.safetensors"]
    monkeypatch.setattr(safetensors_file, "_chunks", chunks)
    write_lora(path, make_modules(rank=2), metadata={})
    assert read_lora(path).ranks == (2,)


def test_unusable_target_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        write_lora(tmp_path / "file" / "x.safetensors", make_modules(), metadata={})
    (tmp_path / "y.safetensors").mkdir()
    with pytest.raises(RunError, match="cannot be written"):
        write_lora(tmp_path / "y.safetensors", make_modules(), metadata={})
    assert names(tmp_path) == ["file", "y.safetensors"]


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="needs POSIX permissions of an ordinary user")
def test_read_only_folder_is_one_sentence(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="Permission denied"):
        write_lora(tmp_path / "x.safetensors", make_modules(), metadata={})


@pytest.mark.parametrize(("value", "dtype"), [(float("nan"), torch.float32), (1e6, torch.float16)])
def test_values_that_are_not_finite_are_refused(tmp_path, value, dtype):
    modules = make_modules()
    modules["blocks.2.ffn.0"].up[0, 0] = value
    with pytest.raises(RunError, match=r"blocks\.2\.ffn\.0 holds values that are not finite in float"):
        write_lora(tmp_path / "x.safetensors", modules, metadata={}, dtype=dtype)
    assert names(tmp_path) == []


def test_empty_lora_is_refused(tmp_path):
    with pytest.raises(RunError, match="no modules"):
        write_lora(tmp_path / "x.safetensors", {}, metadata={})


@pytest.mark.parametrize(
    ("name", "expert"),
    [
        ("x_high_noise.safetensors", "high"),
        ("x_000000250_low_noise.safetensors", "low"),
        ("WAN2.2-HighNoise_x.safetensors", "high"),
        ("me_Wan2.2_low.safetensors", "low"),
        ("highlights.safetensors", None),
        ("slow_motion.safetensors", None),
        ("high_and_low.safetensors", None),
    ],
)
def test_expert_by_name(name, expert):
    assert expert_of_name(name) == expert


@pytest.mark.parametrize(
    ("timesteps", "expert"),
    [
        ("875,1000", "high"),
        ("0,875", "low"),
        ("0,900", "low"),
        ("0,1000", "low_name"),
        ("100,1000", "low_name"),
        ("odd", "low_name"),
    ],
)
def test_expert_by_metadata_wins(tmp_path, timesteps, expert):
    metadata = {"modelspec.timestep_range": timesteps, "modelspec.architecture": "Wan2.2-T2V-A14B/lora"}
    file = read_lora(write_lora(tmp_path / "x_low_noise.safetensors", make_modules(), metadata=metadata))
    assert file.expert == expert.split("_")[0]
    assert file.architecture == "wan2.2-t2v-a14b"
    assert repr(file) == "LoraFile('x_low_noise.safetensors', 36 modules, rank 4, official)"
