"""CLIP vision without the host: its features, its identity and so its cache, and what is refused."""

import pytest
import torch
from safetensors.torch import save_file
from wan_train.core.data.encode import cache_latents
from wan_train.core.data.scan import scan_folder
from wan_train.core.data.store import Store
from wan_train.core.encoders.vision import check_vision_file, load_vision_encoder
from wan_train.core.errors import ModelFileError
from wan_train.core.settings.dataset import DatasetOptions
from wan_train.tests.core.encoders.helpers import clip_vision, load_as_host, open_clip
from wan_train.tools.mini_vae import wan_vae
from wan_train.tools.shapes import draw_dataset

TOLERANCE = 1e-5  # of the largest feature; float32 on both sides, in another order of summation
POSITIONS = "vision_model.embeddings.position_embedding.weight"


@pytest.fixture(scope="module")
def save(tmp_path_factory):
    """Tensors to a file."""

    def write(tensors, name="clip_vision_h.safetensors"):
        path = tmp_path_factory.mktemp("clip") / name
        save_file(tensors, path)
        return path

    return write


@pytest.fixture(scope="module")
def path(save):
    return save(clip_vision())


@pytest.fixture(scope="module")
def vision(path):
    return load_vision_encoder(path, "cpu")


@pytest.fixture(scope="module")
def host_vision(host_side, path):
    return host_side.HostVisionEncoder(load_as_host(path))


@pytest.mark.parametrize("size", [(48, 80), (224, 224), (301, 250)])
def test_features_are_the_hosts(vision, host_vision, error, size):
    image = torch.randint(0, 256, (*size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(sum(size)))
    features = vision.encode(image)
    assert (features.shape, features.dtype) == ((257, 1280), torch.float32)
    assert error(features, host_vision.encode(image)) < TOLERANCE
    assert error(vision.encode(255 - image), features) > 0.1


def test_the_layer_before_the_last_is_taken(save, vision):
    """Whatever the last layer and what follows it hold."""
    tensors = clip_vision()
    for name in tensors:
        if ".layers.1." in name or "post_layernorm" in name:
            tensors[name] = tensors[name] * 0
    image = torch.full((32, 32, 3), 99, dtype=torch.uint8)
    changed = load_vision_encoder(save(tensors), "cpu")
    assert torch.equal(changed.encode(image), vision.encode(image))
    assert changed.identity != vision.identity


@pytest.mark.parametrize("layout", ["fp16", "fp32", "bf16", "no projection", "open_clip"])
def test_a_files_identity_is_the_hosts(save, host_side, vision, layout):
    tensors = clip_vision({"fp32": torch.float32, "bf16": torch.bfloat16}.get(layout, torch.float16))
    if layout == "no projection":
        del tensors["visual_projection.weight"]
    path = save(open_clip(tensors) if layout == "open_clip" else tensors)
    encoder = load_vision_encoder(path, "cpu")
    assert encoder.identity == host_side.HostVisionEncoder(load_as_host(path)).identity
    # The same weights in another arrangement, or rounded to the same numbers, are the same model.
    assert (encoder.identity == vision.identity) == (layout in ("fp16", "fp32", "open_clip"))


def test_open_clip_holds_the_same_model(save, vision):
    image = torch.randint(0, 256, (40, 56, 3), dtype=torch.uint8)
    assert torch.equal(load_vision_encoder(save(open_clip(clip_vision())), "cpu").encode(image), vision.encode(image))


def test_diffusers_folder_is_found(tmp_path, vision):
    (tmp_path / "image_encoder").mkdir()
    save_file(clip_vision(), tmp_path / "image_encoder" / "model.safetensors")
    assert load_vision_encoder(tmp_path, "cpu").identity == vision.identity


@pytest.mark.parametrize("first", ["host", "headless"])
def test_frames_are_encoded_once(vision, host_vision, video, host_video, tmp_path, first):
    folder = tmp_path / "shapes"
    draw_dataset(folder, clips=1, images=0, size=32, frames=9, seed=0)
    dataset = scan_folder(folder, DatasetOptions(width=32, height=32, num_frames=9, trigger_word="shp"))
    store = Store(tmp_path / "cache")
    encoders = [(host_video, host_vision), (video, vision)]
    results, files = [], []
    for vae, clip in encoders if first == "host" else encoders[::-1]:
        results.append(cache_latents(dataset, vae, store, conditioning="first and last frame", vision=clip)[0])
        files.append({path: path.stat().st_mtime_ns for path in store.root.rglob("*.safetensors")})
    assert len(files[0]) == 3  # latents, those of the known frames, features
    assert files[0] == files[1]
    assert results[0] == results[1]
    assert store.load("vision", results[0].entries[0].vision_key)["features"].isfinite().all()


def resized(tensors, name, *shape):
    return {**tensors, name: torch.zeros(shape, dtype=torch.float16)}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda _: wan_vae(6), r"is a Wan 2\.1 VAE; a CLIP vision encoder is needed: clip_vision_h\.safetensors"),
        (lambda t: resized(t, POSITIONS, 577, 1280), r"not the one that Wan 2\.1 was trained with \(ViT-H/14"),
        (lambda t: {n: v for n, v in t.items() if n != POSITIONS}, r"not the one that Wan 2\.1 was trained with"),
        (lambda t: t | {"vision_model.encoder.layers.0.mlp.fc1.weight_scale": torch.ones(1)}, "is quantized"),
    ],
)
def test_other_files_are_refused_by_their_headers(save, change, sentence):
    path = save(change(clip_vision()))
    for read in (check_vision_file, lambda path: load_vision_encoder(path, "cpu")):
        with pytest.raises(ModelFileError, match=sentence):
            read(path)


@pytest.mark.parametrize("layout", ["transformers", "open_clip"])
def test_damaged_files_are_refused(save, layout):
    tensors = clip_vision() if layout == "transformers" else open_clip(clip_vision())
    missing = next(name for name in tensors if "fc2.bias" in name or "c_proj.bias" in name)
    with pytest.raises(ModelFileError, match=f"is incomplete: 1 weight is missing, such as '{missing}'"):
        load_vision_encoder(save({name: tensor for name, tensor in tensors.items() if name != missing}), "cpu")
    with pytest.raises(ModelFileError, match="contradicts itself"):
        load_vision_encoder(save(resized(tensors, missing, 7)), "cpu")
