import random
from itertools import islice

import pytest
import torch
from wan_train.tools.nano import text, world

CAPTIONS = ["a large red circle moving left on a black background", "zorp", ""]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "umt5.safetensors"
    text.main([str(path)])
    return path


@pytest.fixture(scope="module")
def encoder(file):
    return text.TextEncoder(file)


def test_every_word_of_the_world_is_one_piece(encoder):
    rng = random.Random(9)
    for scene in islice(world.scenes(9), 200):
        caption = world.caption(scene, rng)
        assert encoder.tokens.decode(encoder.tokens.encode(caption)) == caption
        assert len(encoder.tokens.encode(caption)) == len(caption.split()) + caption.count(",") + caption.count(":")


def test_a_strange_word_falls_into_letters(encoder):
    assert encoder.tokens.encode("a zorp", out_type=str) == ["▁a", "▁", "z", "o", "r", "p"]


def test_the_text_encoder_gives_what_comfyui_gives(comfy, file, encoder):
    from comfy.utils import load_torch_file

    sizes = {"d_model": 64, "d_ff": 128, "d_kv": 16, "num_heads": 4, "num_layers": 2}
    vocabulary = load_torch_file(str(file))["shared.weight"].shape[0]
    clip = comfy.sd.load_clip(
        [str(file)],
        clip_type=comfy.sd.CLIPType.WAN,
        model_options={"umt5xxl_model_config": {**sizes, "vocab_size": vocabulary}},
    )
    ours, lengths = encoder.encode(CAPTIONS)
    for caption, context, length in zip(CAPTIONS, ours, lengths.tolist(), strict=True):
        (theirs,) = clip.encode_from_tokens_scheduled(clip.tokenize(caption))[0][0]
        assert torch.allclose(context[:length], theirs[:length].float(), atol=2e-3)  # the host computes it in fp16
        assert not context[length:].any()


def test_the_encoder_tells_words_and_their_neighbours(encoder):
    same, _ = encoder.encode(["a red circle", "a red circle"])
    assert torch.equal(same[0], same[1])
    other, _ = encoder.encode(["a blue circle", "a red circle"])
    likeness = torch.nn.functional.cosine_similarity(*other, dim=1)
    assert likeness[1] < 0.6  # the word itself
    assert 0.7 < likeness[2] < 0.999  # its neighbour
