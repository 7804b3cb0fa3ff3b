"""The tokenizer of a umT5 file, and the official .pth in the graph and without it."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from wan_train.core.encoders.text import load_text_encoder
from wan_train.core.encoders.tokenizer import find_tokenizer
from wan_train.core.encoders.weights import open_weights
from wan_train.core.errors import ConfigError, ModelFileError
from wan_train.tools.miniature import TextSize, umt5

CAPTIONS = ["a red circle", "", "ohwx runs, fast"]
NAME = "models_t5_umt5-xxl-enc-bf16.pth"


def official(state):
    """transformers' names as the official file has them (wan/modules/t5.py)."""
    parts = {
        "0.layer_norm": "norm1", "1.layer_norm": "norm2", "0.SelfAttention.relative_attention_bias": "pos_embedding.embedding",
        "1.DenseReluDense.wi_0": "ffn.gate.0", "1.DenseReluDense.wi_1": "ffn.fc1", "1.DenseReluDense.wo": "ffn.fc2",
        **{f"0.SelfAttention.{letter}": f"attn.{letter}" for letter in "qkvo"},
    }  # fmt: skip
    ends = {"shared.weight": "token_embedding.weight", "encoder.final_layer_norm.weight": "norm.weight"}
    made = {ends[name]: tensor for name, tensor in state.items() if name in ends}
    for name, tensor in state.items():
        if name.startswith("encoder.block."):
            block, _, part = name.removeprefix("encoder.block.").removesuffix(".weight").partition(".layer.")
            made[f"blocks.{block}.{parts[part]}.weight"] = tensor
    return made


@pytest.fixture
def files(tmp_path):
    """A bf16 encoder: the official .pth without a tokenizer, and elsewhere ComfyUI's file of the same weights."""
    state = {name: t.bfloat16() if t.is_floating_point() else t for name, t in umt5().items()}
    (tmp_path / "pth").mkdir()
    torch.save(official(state), tmp_path / "pth" / NAME)
    save_file(state, tmp_path / "umt5_xxl_bf16.safetensors")
    return tmp_path / "pth" / NAME, tmp_path / "umt5_xxl_bf16.safetensors"


def spiece(path):
    return load_file(path)["spiece_model"].numpy().tobytes()


def test_none_is_told_with_what_to_do(files):
    with pytest.raises(ModelFileError, match=r"has no tokenizer inside.*name it as the tokenizer"):
        find_tokenizer(open_weights(files[0]))


def test_the_places_in_their_order(files, tmp_path):
    pth, comfys = files
    weights, own = open_weights(pth), spiece(comfys)
    assert find_tokenizer(weights, folders=[tmp_path]) == (comfys, own)  # in a file of ComfyUI's
    (tmp_path / "spiece.model").write_bytes(b"in a folder")
    assert find_tokenizer(weights, folders=[tmp_path]) == (tmp_path / "spiece.model", b"in a folder")
    (pth.parent / "spiece.model").write_bytes(b"beside it")
    assert find_tokenizer(weights, folders=[tmp_path]) == (pth.parent / "spiece.model", b"beside it")
    assert find_tokenizer(weights, comfys) == (comfys, own)
    assert find_tokenizer(weights, tmp_path)[1] == b"in a folder"
    assert find_tokenizer(open_weights(comfys)) == (comfys, own)


def test_a_neighbour_of_another_vocabulary_or_kind_is_not_asked(files):
    pth, comfys = files
    state = load_file(comfys)
    save_file({**state, "shared.weight": torch.zeros(7, 4)}, pth.parent / "a.safetensors")
    save_file({"x": torch.zeros(3)}, pth.parent / "b.safetensors")
    (pth.parent / "c.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelFileError, match="has no tokenizer inside"):
        find_tokenizer(open_weights(pth))
    save_file(state, pth.parent / "d.safetensors")
    assert find_tokenizer(open_weights(pth))[0].name == "d.safetensors"


def test_what_is_named_and_is_none(files, tmp_path):
    weights = open_weights(files[0])
    with pytest.raises(ModelFileError, match=r"the tokenizer .*gone\.model does not exist"):
        find_tokenizer(weights, tmp_path / "gone.model")
    save_file({"x": torch.zeros(3)}, tmp_path / "x.safetensors")
    with pytest.raises(ModelFileError, match=r"x\.safetensors' holds no tokenizer"):
        find_tokenizer(weights, tmp_path / "x.safetensors")


def test_the_pth_gives_what_the_safetensors_gives(files):
    pth, comfys = files
    first, second = load_text_encoder(comfys, "cpu"), load_text_encoder(pth, "cpu", tokenizer=comfys)
    assert first.identity == second.identity
    for one, other in zip(first.encode_batch(CAPTIONS), second.encode_batch(CAPTIONS), strict=True):
        assert torch.equal(one[0], other[0])


@pytest.fixture
def in_graph(host_side, files, monkeypatch):
    """The host's text encoders lie where the files are."""
    import folder_paths

    pth, _ = files
    folders, endings = folder_paths.folder_names_and_paths["text_encoders"]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "text_encoders", ([str(pth.parent), *folders], endings))
    return host_side


def test_the_pth_in_the_graph_gives_what_the_safetensors_gives(in_graph, files, text, error):
    pth, comfys = files
    with pytest.raises(ModelFileError, match="has no tokenizer inside"):
        in_graph.load_umt5(pth)
    (pth.parent / "spiece.model").write_bytes(spiece(comfys))
    encoders = [in_graph.HostTextEncoder(in_graph.load_umt5(path)) for path in (pth, comfys)]
    alone = load_text_encoder(pth, "cpu")
    assert encoders[0].identity == encoders[1].identity == alone.identity
    for caption in CAPTIONS:
        one, other = (encoder.encode(caption)[0] for encoder in encoders)
        assert torch.equal(one, other)
        assert error(alone.encode(caption)[0], one) < 1e-5


def test_a_safetensors_file_without_a_tokenizer_takes_that_of_the_folder(in_graph, files):
    pth, comfys = files
    state = load_file(comfys)
    bare = pth.parent / "bare.safetensors"
    save_file({name: tensor for name, tensor in state.items() if name != "spiece_model"}, bare)
    (pth.parent / "spiece.model").write_bytes(spiece(comfys))
    first, second = (in_graph.HostTextEncoder(in_graph.load_umt5(path)) for path in (bare, comfys))
    assert first.identity == second.identity
    assert torch.equal(first.encode("a red circle")[0], second.encode("a red circle")[0])


def test_another_pth_and_a_program_in_one_are_refused_in_the_graph(in_graph, tmp_path):
    torch.save({"x": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(
        ConfigError, match=r"'other\.pth' is not a umT5 text encoder .*models_t5_umt5-xxl-enc-bf16\.pth"
    ):
        in_graph.load_umt5(tmp_path / "other.pth")
    torch.save({"x": print}, tmp_path / "program.pth")
    with pytest.raises(ModelFileError, match="was not opened: it is a pickle file that holds more than weights"):
        in_graph.load_umt5(tmp_path / "program.pth")


def test_a_size_that_is_not_full_is_read_off_the_pth(in_graph, tmp_path):
    state = umt5(TextSize(d_model=32, d_ff=48, d_kv=8, num_heads=2, num_layers=3))
    torch.save(official(state), tmp_path / "small.pth")
    tokenizer = tmp_path / "pth" / "spiece.model"
    tokenizer.write_bytes(state["spiece_model"].numpy().tobytes())
    assert in_graph.HostTextEncoder(in_graph.load_umt5(tmp_path / "small.pth")).dim == 32
