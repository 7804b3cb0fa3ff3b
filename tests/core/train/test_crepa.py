"""CREPA in a run: features of a small true DINOv2 made once, a projection that goes on exactly, and what is refused."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from wan_train.core.encoders import dino
from wan_train.core.encoders.vae import load_video_encoder
from wan_train.core.errors import ConfigError, ModelFileError
from wan_train.core.memory.deterministic import same_bits
from wan_train.core.objective.crepa import similarity
from wan_train.core.objective.objective import objective_of
from wan_train.core.plan.decision import decide, may_use_graphs
from wan_train.core.plan.planning import make_planner
from wan_train.core.plan.spread import check_whole_clips
from wan_train.core.settings.crepa import CrepaOptions
from wan_train.core.settings.loss import LossOptions
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.settings.rollout import RolloutOptions
from wan_train.core.settings.tread import TreadOptions
from wan_train.core.train import crepa
from wan_train.core.train.batches import load_tensor
from wan_train.core.train.crepa import Crepa, check_crepa, crepa_identity, feature_path
from wan_train.core.train.events import EventReader, EventWriter, read_history
from wan_train.core.train.run import RunStoppedError, run_job
from wan_train.core.train.run_folder import RunFolder
from wan_train.core.wan.checkpoint import inspect
from wan_train.tests.core.plan.test_estimate import CARD
from wan_train.tests.core.train.helpers import train_in_folder
from wan_train.tools.miniature import wan_vae

CPU, WIDTH = torch.device("cpu"), 12


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A DINOv2 of random weights in the form that Hugging Face has it."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("dinov2")
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, patch_size=14, image_size=28
    )
    transformers.Dinov2Model(config).save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    path = tmp_path_factory.mktemp("vae") / "vae.safetensors"
    save_file(wan_vae(6), path)
    return path


@pytest.fixture
def job(job, encoder, vae):
    options = CrepaOptions(weight=0.5, encoder=str(encoder), vae=str(vae), block=0, image_size=42)
    loop = replace(job.loop, caption_dropout=0.0)
    return replace(job, loop=loop, crepa=options, crepa_identity=crepa_identity(options))


def changed(job, **options):
    made = replace(job.crepa, **options)
    return replace(job, crepa=made, crepa_identity=crepa_identity(made))


def run(folder, job, stop_at=None):
    if not folder.path.exists():
        folder.path.mkdir(parents=True)
        folder.write_job(job)

    def should_stop():
        return stop_at is not None and max(read_history(folder.events_path).losses, default=0) >= stop_at

    return run_job(folder, EventWriter(folder.events_path), CPU, should_stop)


def terms(events):
    return [event["terms"] for event in events if event["event"] == "step"]


def test_a_run_learns_it_beside_the_flow_and_makes_features_once(tmp_path, job, monkeypatch):
    losses, lora, events = train_in_folder(tmp_path, job, "first", CPU)
    for loss, each in zip(losses, terms(events), strict=True):
        assert loss == pytest.approx(each["flow"] + 0.5 * each["crepa"], rel=1e-5)
        assert -(1 + 2 * math.exp(-1)) <= each["crepa"] < 1.5
    assert sum("DINOv2" in str(event.get("message")) for event in events) == 3
    assert all("lora" in key or key.endswith("alpha") for key in lora)
    monkeypatch.setattr(crepa, "DinoEncoder", pytest.fail)
    again, same, _ = train_in_folder(tmp_path, job, "second", CPU)
    assert again == losses
    assert all(torch.equal(same[name], tensor) for name, tensor in lora.items())
    monkeypatch.undo()
    without, other, _ = train_in_folder(tmp_path, replace(job, crepa=CrepaOptions(), crepa_identity=""), "third", CPU)
    assert any(not torch.equal(other[name], tensor) for name, tensor in lora.items())
    assert without[0] == pytest.approx(terms(events)[0]["flow"], rel=1e-6)


def test_a_stop_is_seen_between_samples(tmp_path, job):
    folder, asked = RunFolder(tmp_path / "runs" / "run"), []
    folder.path.mkdir(parents=True)
    folder.write_job(job)
    with pytest.raises(RunStoppedError):
        run_job(folder, EventWriter(folder.events_path), CPU, lambda: asked.append(1) or len(asked) > 1)
    made = [Path(feature_path(job)(sample)).is_file() for sample in job.data.samples]
    assert made == [True, False, False]
    run(folder, job)


def test_the_features_are_those_of_the_decoded_frames(tmp_path, job, encoder, vae):
    """Of a clip of two latent frames: those of its first frame and of its last."""
    from transformers import Dinov2Model

    train_in_folder(tmp_path, job, "run", CPU)
    sample = job.data.samples[0]
    found = load_tensor(feature_path(job)(sample), "features", sample.name)
    assert found.shape == (2, 9, WIDTH)
    frames = load_video_encoder(vae, "cpu").decode(load_file(sample.latents_path)["latents"])[[0, 4]]
    pixels = torch.nn.functional.interpolate(frames.permute(0, 3, 1, 2) / 255, size=(42, 42), mode="bilinear")
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.no_grad():
        expected = Dinov2Model.from_pretrained(encoder)(pixels).last_hidden_state[:, 1:]
    torch.testing.assert_close(found.float(), expected, rtol=1e-2, atol=1e-2)


def test_a_run_goes_on_exactly(tmp_path, job):
    """The projection and its moments are in the checkpoint, and routes and rollouts are functions of the step."""
    job = replace(
        changed(job, block=1),
        tread=TreadOptions(routes="1 to 1: 0.5"),
        rollout=RolloutOptions(steps=3, ramp_steps=4, direction=1.0),
        loss=LossOptions(contrastive_guidance=2.0),
    )
    straight, stopped = (RunFolder(tmp_path / "runs" / name) for name in ("straight", "stopped"))
    whole = load_file(run(straight, job))
    with pytest.raises(RunStoppedError):
        run(stopped, job, stop_at=3)
    resumed = load_file(run(stopped, job))
    assert all(torch.equal(whole[name], tensor) for name, tensor in resumed.items())
    one, other = (
        [e["loss"] for e in EventReader(f.events_path).read() if e["event"] == "step"] for f in (straight, stopped)
    )
    assert one[-1] == other[-1]


@pytest.mark.grid(2)
@pytest.mark.parametrize(
    "memory",
    [
        {"streamed_blocks": 2, "offload_inputs": True},
        {"streamed_blocks": 1, "split_blocks": True},
        {"keep_attention": 1, "ffn_pieces": 2},
        {"checkpointing": False},
    ],
    ids=str,
)
def test_it_is_the_same_however_the_model_is_held(tmp_path, job, memory):
    job = replace(job, loop=replace(job.loop, steps=3))
    losses, lora, _ = train_in_folder(tmp_path, job, "plain", CPU)
    held = replace(job, memory=MemoryOptions(plan="manual", **memory))
    other, same, _ = train_in_folder(tmp_path, held, "held", CPU)
    assert other == pytest.approx(losses, rel=1e-4)
    for name, tensor in lora.items():
        torch.testing.assert_close(same[name], tensor, rtol=1e-2, atol=1e-3)


@pytest.mark.grid(2)
@pytest.mark.parametrize(
    "change", [{"distance": 0}, {"tau": 9.0}, {"block": 1}, {"weight": 2.0}, {"image_size": 14}], ids=str
)
def test_each_option_reaches_the_run(tmp_path, job, change):
    job = replace(job, loop=replace(job.loop, steps=2))
    one, other = (
        train_in_folder(tmp_path, each, name, CPU)[0]
        for name, each in (("one", job), ("other", changed(job, **change)))
    )
    assert one != other
    assert job.key != changed(job, **change).key


def test_neighbours_by_hand():
    """Of one place a frame: cosines of the frame itself, and of those one and two away."""
    projected, features = torch.randn(1, 4, 1, 5), torch.randn(1, 4, 1, 5)
    cosine = torch.nn.functional.cosine_similarity(projected[0, :, 0, None], features[0, None, :, 0], dim=2)
    for neighbours, distances in (("exact", [2]), ("all", [1, 2])):
        options = CrepaOptions(distance=2, tau=1.5, neighbours=neighbours)
        expected = sum(
            (1.0 if a == b else math.exp(-abs(a - b) / 1.5)) * cosine[a, b]
            for a in range(4)
            for b in range(4)
            if a == b or abs(a - b) in distances
        )
        torch.testing.assert_close(similarity(projected, features, options), expected[None] / 4)
    single = similarity(projected[:, :1], features[:, :1], CrepaOptions(distance=1))
    torch.testing.assert_close(single, cosine[0, 0][None])


@pytest.mark.parametrize("places", [(16, 4), (15, 6), (4, 16)], ids=str)
def test_with_the_same_bits_each_time_tokens_come_to_the_encoders_places_by_a_product(places):
    """Squares of tokens, and a row of them: the same numbers and gradients, by an operator that has a fixed order on a GPU."""
    tokens, of_encoder = places
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, of_encoder, 8, generator=generator)
    projected = torch.randn(2, 3, tokens, 8, generator=generator, requires_grad=True)
    found = []
    for wanted in (False, True):
        with same_bits(wanted):
            value = similarity(projected, features, CrepaOptions(distance=1))
            found.append((value, *torch.autograd.grad(value.sum(), projected)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_the_planner_and_the_graphs_know(job):
    assert objective_of(job).names == ("flow", "crepa")
    info = inspect(job.model.path)
    assert make_planner(job, decide(job, info, CPU), CARD).task.features == WIDTH
    gpu = torch.device("cuda", 0)
    plain = replace(job, crepa=CrepaOptions(), crepa_identity="")
    assert may_use_graphs(plain, info.config, gpu)
    assert not may_use_graphs(job, info.config, gpu)
    with pytest.raises(ConfigError, match="context_parallel is 2, but CREPA"):
        check_whole_clips(job, 2)


def test_what_cannot_be_is_refused(tmp_path, job):
    info = inspect(job.model.path)
    with pytest.raises(ConfigError, match=r"crepa_block is 7, but .* has 2 blocks"):
        check_crepa(changed(job, block=7), info)
    routed = replace(changed(job, block=1), tread=TreadOptions(routes="1 to -1: 0.5"))
    check_crepa(routed, info)  # at its end all tokens are there again
    with pytest.raises(ModelFileError, match=r"crepa_encoder is .*, which is a file: give the folder"):
        crepa_identity(replace(job.crepa, encoder=job.model.path))
    with pytest.raises(ConfigError, match="crepa_encoder is empty"):
        crepa_identity(replace(job.crepa, encoder=""))
    with pytest.raises(ConfigError, match="crepa_vae is empty"):
        crepa_identity(replace(job.crepa, vae=""))
    with pytest.raises(ConfigError, match="crepa_encoder '/nowhere"):
        crepa_identity(replace(job.crepa, encoder="/nowhere/dinov2"))
    with pytest.raises(ModelFileError, match=r"crepa_image_size is 40, .*multiple of 14"):
        crepa_identity(replace(job.crepa, image_size=40))
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelFileError, match="holds a model of the type bert"):
        dino.feature_width(tmp_path / "bert")


def test_a_state_that_is_not_its_own_is_refused(job):
    from wan_train.core.train.prepare import prepare

    own = prepare(job, CPU).crepa
    assert isinstance(own, Crepa)
    state = own.state_dict()
    own.check_state(state)
    for spoilt in (
        None,
        {},
        {**state, "linear.weight": state["linear.weight"][:1]},
        {**state, "norm.bias": state["norm.bias"] * math.nan},
    ):
        with pytest.raises(ValueError, match="CREPA"):
            own.check_state(spoilt)
