"""The text encoder without the host against the host's, on the same files."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from wan_train.core.encoders.text import Umt5TextEncoder, load_text_encoder, transformers_name
from wan_train.core.errors import ConfigError, ModelFileError
from wan_train.tools.miniature import TextSize, umt5

TOLERANCE = 1e-5  # of the largest value, float32 on the CPU; ten times what was measured
CAPTIONS = [
    "",
    " ",
    "a red circle moving left, slowly",
    "(masterpiece:1.3), [x], {y|z} \\(tail\\) C:\\dir \\\\(",
    "embedding:easynegative and embedding:other",
    "héllo wörld 世界 🎬 \u200d\u00a0end",
    "two\nlines\tand </s> <pad> <unk>",
    "x" * 510,  # with the space in front and the end token exactly 512 tokens
    "x" * 511,
    "x" * 2000,
]
FP8 = torch.float8_e4m3fn


def is_linear(name):
    return name.endswith(".weight") and ("SelfAttention" in name or "Dense" in name) and "bias" not in name


def fp8_scaled(state, *, legacy):
    """The file as ComfyUI's converter writes it, in the older or the newer form."""
    result = {"scaled_fp8": torch.zeros(2, dtype=FP8)} if legacy else {}
    for name, tensor in state.items():
        if not is_linear(name) or not tensor.numel():
            result[name] = tensor
            continue
        layer, scale = name.removesuffix(".weight"), tensor.float().abs().max() / 448
        result[name] = (tensor.float() / scale).to(FP8)
        result[f"{layer}.scale_weight" if legacy else f"{layer}.weight_scale"] = scale
        if legacy:
            result[f"{layer}.scale_input"] = torch.ones(())
        else:
            quantized = json.dumps({"format": "float8_e4m3fn"}).encode()
            result[f"{layer}.comfy_quant"] = torch.frombuffer(bytearray(quantized), dtype=torch.uint8)
    return result


def mixed(state):
    """Weights wider than, and other than, the dtype of the final norm: the host rounds them to it."""
    state = dict(state)
    state["shared.weight"] = state["shared.weight"].float() * 1.00123
    state["encoder.block.0.layer.0.SelfAttention.q.weight"] = umt5(seed=4)[
        "encoder.block.0.layer.0.SelfAttention.q.weight"
    ]
    name = "encoder.block.1.layer.1.DenseReluDense.wo.weight"
    state[name] = state[name].bfloat16()
    return state


STORED = {
    "fp16": lambda state: state,
    "fp32": lambda state: {n: t.float() * 1.0001 if t.is_floating_point() else t for n, t in state.items()},
    "bf16": lambda state: {n: t.bfloat16() if t.is_floating_point() else t for n, t in state.items()},
    "fp8": lambda state: {n: t.to(FP8) if is_linear(n) or n == "shared.weight" else t for n, t in state.items()},
    "fp8_all": lambda state: {n: t.to(FP8) if t.is_floating_point() else t for n, t in state.items()},
    "fp8_scaled_legacy": lambda state: fp8_scaled(state, legacy=True),
    "fp8_scaled": lambda state: fp8_scaled(state, legacy=False),
    "mixed": mixed,
}


@pytest.mark.parametrize("caption", CAPTIONS, ids=lambda caption: f"{len(caption)} {caption[:12]!r}")
def test_embeddings_are_the_hosts(text, host_text, error, caption):
    context, was_cut = text.encode(caption)
    expected, expected_cut = host_text.encode(caption)
    assert context.shape == expected.shape
    assert context.dtype == torch.float32
    assert was_cut == expected_cut == (len(caption) > 510)
    assert error(context, expected) < TOLERANCE


@pytest.mark.parametrize("kind", ["host", "headless"])
def test_several_at_once_are_the_same_as_one_by_one(text, host_text, error, kind):
    encoder = text if kind == "headless" else host_text
    results = encoder.encode_batch(CAPTIONS)
    assert len(results) == len(CAPTIONS)
    for caption, (context, was_cut) in zip(CAPTIONS, results, strict=True):
        alone, alone_cut = encoder.encode(caption)
        assert context.shape == alone.shape
        assert context.is_contiguous()
        assert was_cut == alone_cut
        assert error(context, alone) < TOLERANCE
    assert encoder.encode_batch([]) == []


def test_bf16_several_at_once(text_path, error):
    """In bf16 sums in another order differ by its rounding, 2^-8."""
    encoder = load_text_encoder(text_path, "cpu", torch.bfloat16)
    for caption, (context, _) in zip(CAPTIONS[:6], encoder.encode_batch(CAPTIONS[:6]), strict=True):
        assert error(context, encoder.encode(caption)[0]) < 2**-5


@pytest.mark.parametrize("kind", ["host", "headless"])
def test_a_batch_too_large_for_memory_is_halved(text, host_text, error, monkeypatch, kind):
    encoder = text if kind == "headless" else host_text
    inner = text._model.encoder if kind == "headless" else host_text._clip.cond_stage_model.umt5xxl.transformer
    forward, sizes = inner.forward, []

    def guarded(*args, **kwargs):
        rows = kwargs["attention_mask"] if kind == "headless" else args[1]
        sizes.append(len(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(*args, **kwargs)

    captions = ["a cat", "a red dot", "two cats, and a dog", "x", ""]
    expected = [encoder.encode(caption)[0] for caption in captions]
    monkeypatch.setattr(inner, "forward", guarded)
    results = encoder.encode_batch(captions)
    assert sizes == [5, 2, 3, 1, 2]
    assert all(error(context, other) < TOLERANCE for (context, _), other in zip(results, expected, strict=True))


def test_captions_are_told_apart(text, error):
    assert error(text.encode("a red cat")[0], text.encode("a red dot")[0]) > 0.01


@pytest.mark.parametrize("stored", STORED)
def test_every_way_of_storing_is_read_as_the_host_reads_it(host_side, host_clip, text_path, tmp_path, error, stored):
    path = tmp_path / "umt5.safetensors"
    save_file(STORED[stored](load_file(text_path)), path)
    theirs, ours = host_side.HostTextEncoder(host_clip(path)), load_text_encoder(path, "cpu")
    assert ours.identity == theirs.identity
    assert ours.dim == theirs.dim == 64
    for caption in ("a red circle (moving) left", "x" * 600):
        assert error(ours.encode(caption)[0], theirs.encode(caption)[0]) < TOLERANCE


def test_both_forms_of_scaled_fp8_are_one_encoder(text, text_path, tmp_path):
    for form in ("fp8_scaled", "fp8_scaled_legacy"):
        save_file(STORED[form](load_file(text_path)), tmp_path / f"{form}.safetensors")
    first, second = (load_text_encoder(tmp_path / f"{form}.safetensors", "cpu") for form in STORED if "scaled" in form)
    assert first.identity == second.identity != text.identity
    assert torch.equal(first.encode("a cat")[0], second.encode("a cat")[0])


def test_a_scale_for_each_row(text_path, tmp_path):
    """fp8 with one scale for each row, of a linear and of the embedding, against the products in float32."""
    state = {name: t.float() if t.is_floating_point() else t for name, t in load_file(text_path).items()}
    quantized, plain = dict(state), dict(state)
    for name in ("shared.weight", "encoder.block.0.layer.0.SelfAttention.v.weight"):
        scale = state[name].abs().amax(dim=1, keepdim=True) / 448
        quantized[name] = (state[name] / scale).to(FP8)
        quantized[name.removesuffix(".weight") + ".weight_scale"] = scale
        plain[name] = quantized[name].float() * scale
    save_file(quantized, tmp_path / "rows.safetensors")
    save_file(plain, tmp_path / "plain.safetensors")
    rows, products = (load_text_encoder(tmp_path / f"{name}.safetensors", "cpu") for name in ("rows", "plain"))
    assert torch.equal(rows.encode("a red circle")[0], products.encode("a red circle")[0])
    quantized["shared.weight_scale"] = torch.ones(4, 4)
    save_file(quantized, tmp_path / "blocks.safetensors")
    with pytest.raises(ModelFileError, match=r"'shared.weight_scale' has the shape \[4, 4\]"):
        load_text_encoder(tmp_path / "blocks.safetensors", "cpu")


def official(state):
    """The weights under the names of the official file."""
    parts = {
        "layer.0.layer_norm": "norm1", "layer.1.layer_norm": "norm2", "layer.0.SelfAttention.q": "attn.q",
        "layer.0.SelfAttention.k": "attn.k", "layer.0.SelfAttention.v": "attn.v", "layer.0.SelfAttention.o": "attn.o",
        "layer.0.SelfAttention.relative_attention_bias": "pos_embedding.embedding",
        "layer.1.DenseReluDense.wi_0": "ffn.gate.0", "layer.1.DenseReluDense.wi_1": "ffn.fc1",
        "layer.1.DenseReluDense.wo": "ffn.fc2",
    }  # fmt: skip
    ends = {"shared.weight": "token_embedding.weight", "encoder.final_layer_norm.weight": "norm.weight"}
    result = {}
    for name, tensor in state.items():
        if name.startswith("encoder.block.") and tensor.numel():
            block, part = name.removeprefix("encoder.block.").removesuffix(".weight").split(".", 1)
            result[f"blocks.{block}.{parts[part]}.weight"] = tensor
        elif name in ends:
            result[ends[name]] = tensor
    return result


def write_tokenizer(state, path: Path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(state["spiece_model"].numpy().tobytes())


def test_the_official_pth_gives_the_same(text, text_path, tmp_path):
    state = load_file(text_path)
    path = tmp_path / "models_t5_umt5-xxl-enc-bf16.pth"
    torch.save(official(state), path)
    with pytest.raises(ModelFileError, match=r"no tokenizer inside.*google/umt5-xxl"):
        load_text_encoder(path, "cpu")
    write_tokenizer(state, tmp_path / "elsewhere" / "spiece.model")
    write_tokenizer(state, tmp_path / "google" / "umt5-xxl" / "spiece.model")  # where the official repository has it
    for tokenizer in (None, tmp_path / "elsewhere", tmp_path / "elsewhere" / "spiece.model"):
        loaded = load_text_encoder(path, "cpu", tokenizer=tokenizer)
        assert loaded.identity == text.identity
        assert torch.equal(loaded.encode("a red circle")[0], text.encode("a red circle")[0])


def test_transformers_folder_gives_the_same(text, text_path, tmp_path):
    from transformers import UMT5Config, UMT5EncoderModel

    state = load_file(text_path)
    vocabulary = state["shared.weight"].shape[0]
    model = UMT5EncoderModel(
        UMT5Config(vocab_size=vocabulary, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4)
    )
    weights = {name: tensor for name, tensor in state.items() if tensor.numel() and name != "spiece_model"}
    model.load_state_dict({**weights, "encoder.embed_tokens.weight": weights["shared.weight"]})
    model.half().save_pretrained(tmp_path / "text_encoder", max_shard_size="40KB")
    assert len(list((tmp_path / "text_encoder").glob("*.safetensors"))) > 1
    write_tokenizer(state, tmp_path / "tokenizer" / "spiece.model")
    for place in (tmp_path, tmp_path / "text_encoder"):  # the whole pipeline, and its part
        loaded = load_text_encoder(place, "cpu")
        assert loaded.identity == text.identity
        assert torch.equal(loaded.encode("a red circle")[0], text.encode("a red circle")[0])


def test_bf16_is_another_identity_and_nearly_the_same_numbers(text, text_path, error):
    rough = load_text_encoder(text_path, "cpu", torch.bfloat16)
    assert rough.identity != text.identity
    assert 1e-4 < error(rough.encode("a red circle")[0], text.encode("a red circle")[0]) < 0.05
    with pytest.raises(ConfigError, match="float16; use float32 or bfloat16"):
        load_text_encoder(text_path, "cpu", torch.float16)


def test_another_tokenizer_is_another_identity(text, text_path, tmp_path):
    """The same weights read other ids."""
    import sentencepiece

    state = load_file(text_path)
    sentences = iter(["a red circle", "a blue square"] * 20)
    with (tmp_path / "spiece.model").open("wb") as writer:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences, model_writer=writer, vocab_size=40, hard_vocab_limit=False, pad_id=0, eos_id=1,
            unk_id=2, bos_id=-1, num_threads=1, minloglevel=2,
        )  # fmt: skip
    other = load_text_encoder(text_path, "cpu", tokenizer=tmp_path)
    assert other.identity != text.identity
    assert other.tokenize("a red circle")[0] != text.tokenize("a red circle")[0]
    small = {**state, "shared.weight": state["shared.weight"][:20].clone()}
    save_file(small, tmp_path / "small.safetensors")
    with pytest.raises(ModelFileError, match=r"tokenizer does not belong.*20"):
        load_text_encoder(tmp_path / "small.safetensors", "cpu")
    (tmp_path / "spiece.model").write_bytes(b"not a model")
    with pytest.raises(ModelFileError, match="not a sentencepiece model"):
        load_text_encoder(text_path, "cpu", tokenizer=tmp_path)


def test_a_layer_chosen_in_the_graph_is_another_identity(host_side, host_clip, host_text, text_path):
    clip = host_clip(text_path)
    clip.clip_layer(-2)
    assert host_side.HostTextEncoder(clip).identity != host_text.identity


def test_names_of_transformers_stay():
    name = "encoder.block.3.layer.1.DenseReluDense.wi_0.weight"
    assert transformers_name(name) == name
    assert transformers_name("blocks.3.ffn.gate.0.weight") == name


def test_loading_needs_little_more_than_the_file(tmp_path):
    """The peak of resident memory while loading, on a file of 50 MB in fp16."""
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not reset.exists():
        pytest.skip("the peak of memory is read from Linux's /proc")
    size = TextSize(d_model=512, d_ff=2048, d_kv=64, num_heads=8, num_layers=6)
    path = tmp_path / "umt5.safetensors"
    save_file({name: t.half() if t.is_floating_point() else t for name, t in umt5(size).items()}, path)

    def resident(field: str) -> int:
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith(field))

    reset.write_text("5")  # the peak becomes what is resident now
    before = resident("VmRSS")
    encoder = load_text_encoder(path, "cpu")
    used = resident("VmHWM") - before
    assert isinstance(encoder, Umt5TextEncoder)
    num_bytes = path.stat().st_size
    assert num_bytes > 45e6
    assert used < 1.3 * num_bytes


def test_other_files_are_refused_by_name(tmp_path, vae_path):
    with pytest.raises(ModelFileError, match=r"is a Wan 2.1 VAE; a umT5 text encoder is needed"):
        load_text_encoder(vae_path, "cpu")
    t5 = {name: tensor for name, tensor in umt5().items() if "block.1.layer.0.SelfAttention.rel" not in name}
    save_file(t5, tmp_path / "t5xxl.safetensors")
    with pytest.raises(ModelFileError, match="is a T5 text encoder; a umT5 text encoder is needed"):
        load_text_encoder(tmp_path / "t5xxl.safetensors", "cpu")
    with pytest.raises(ModelFileError, match="does not exist"):
        load_text_encoder(tmp_path / "absent.pth", "cpu")


@pytest.mark.parametrize("name", ["shared.weight", "encoder.block.1.layer.1.DenseReluDense.wo.weight"])
def test_an_incomplete_file_is_refused(text_path, tmp_path, name):
    state = load_file(text_path)
    del state[name]
    save_file(state, tmp_path / "umt5.safetensors")
    with pytest.raises(ModelFileError, match=f"incomplete: .*'{name}'"):
        load_text_encoder(tmp_path / "umt5.safetensors", "cpu")


def test_int8_is_refused(text_path, tmp_path):
    state = load_file(text_path)
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    save_file({**state, name: state[name].to(torch.int8)}, tmp_path / "umt5.safetensors")
    with pytest.raises(ModelFileError, match=f"'{name}' is stored as torch.int8"):
        load_text_encoder(tmp_path / "umt5.safetensors", "cpu")


@pytest.mark.parametrize("package", ["transformers", "sentencepiece"])
def test_a_missing_package_is_named(text_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"{package} is missing or too old: .*wan-train\[headless\]"):
        load_text_encoder(text_path, "cpu")
