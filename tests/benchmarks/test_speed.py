"""A dry run of the speed benchmark: a toy model on the CPU, and what is made of the numbers."""

import json
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from wan_train.benchmarks import ceilings, musubi
from wan_train.benchmarks.ceilings import Work, measure_ceilings, roofline
from wan_train.benchmarks.material import MODELS, Clip, make_job, random_pair, write_checkpoint
from wan_train.benchmarks.ours import Setting, Task, run_task
from wan_train.benchmarks.results import add_ours, add_peer, disagreements, read_report, table, write_report
from wan_train.benchmarks.step_kernels import Kernel, summarize
from wan_train.core.errors import ConfigError
from wan_train.core.flow.objective import flow_loss, velocity_target
from wan_train.core.memory.adamw import AdamW
from wan_train.core.wan.checkpoint import inspect
from wan_train.core.wan.config import WanConfig
from wan_train.core.wan.loading import load_transformer

PACK = Path(__file__).resolve().parents[2]
TOY = MODELS["toy"]
CLIP = Clip(64, 32, 5)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("toy") / "toy.safetensors"
    write_checkpoint(path, TOY, torch.float32)
    return path


@pytest.mark.grid(8, "benchmarks by their commands")
def test_the_command_measures_and_writes_a_row_and_a_table(tmp_path, model):
    out = tmp_path / "results" / "speed.json"
    shutil.copy(model, tmp_path / "random-toy-fp32.safetensors")
    speed = [sys.executable, str(PACK / "benchmarks" / "speed.py"), "--out", str(out)]
    asked = ["--model", "toy", "--weights", "fp32", "--clips", str(CLIP), "--work", str(tmp_path), "--no-ceilings"]
    timing = ["--steps", "1", "--warmup", "2", "--ours", "precision=fp32 keep_attention=1"]
    done = subprocess.run([*speed, *asked, *timing], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    (row,) = report["rows"]
    assert (row["shape"], row["tokens"], row["steps"], row["plan"]) == (
        str(CLIP),
        16,
        1,
        "precision=fp32 keep_attention=1",
    )
    assert row["ours_s"] > 0
    assert report["versions"]["torch"] == metadata.version("torch")
    assert row["plan"] in done.stdout.splitlines()[-1]


def test_the_rank_and_where_the_optimizers_state_is_are_those_asked_for(tmp_path, model, monkeypatch):
    seen = set()
    step = AdamW.step

    def watch(self, closure=None):
        ranks = {min(parameter.shape) for parameter in self.param_groups[0]["params"]}
        seen.add((self.is_offloaded, *ranks))
        return step(self, closure)

    monkeypatch.setattr(AdamW, "step", watch)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # which a task would set for this process
    for text in ("precision=fp32", "precision=fp32 offload_optimizer=1"):
        out, setting = str(tmp_path / "rows.jsonl"), Setting.parse(text)
        files = {"model": str(model), "work": str(tmp_path), "out": out}
        run_task(Task(setting=setting, clips=(str(CLIP),), steps=1, warmup=1, profile=False, rank=4, **files))
    assert seen == {(False, 4), (True, 4)}


def test_our_loss_is_compared_on_the_tensors_of_the_peer(tmp_path, model, monkeypatch):
    latents, text = (tensor.float() for tensor in random_pair(CLIP, TOY))
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    noisy, timesteps = 0.25 * latents + 0.75 * noise, torch.tensor([751.0])  # a peer's timestep is its own matter
    plain = load_transformer(inspect(model), dtype=torch.float32, device="cpu")
    padded = torch.nn.functional.pad(text, (0, 0, 0, 512 - len(text)))
    with torch.no_grad():
        pred = plain(noisy[None], timesteps, padded[None])
    loss = flow_loss(pred, velocity_target(latents, noise)[None]).mean()
    given = {"latents": latents[None], "noise": noise[None], "noisy": noisy[None], "timesteps": timesteps}
    given |= {"text": text, "loss": loss}
    save_file(given, tmp_path / f"{'x'.join(map(str, latents.shape))}.safetensors")
    out = tmp_path / "ours.jsonl"
    places = {"model": str(model), "work": str(tmp_path), "out": str(out), "dumps": str(tmp_path)}
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    run_task(Task(setting=Setting.parse("precision=fp32"), clips=(str(CLIP),), steps=1, warmup=1, **places))
    report = read_report(tmp_path / "none.json")
    add_ours(report, "toy", json.loads(out.read_text()))
    (row,) = report["rows"]
    assert row["compared"]["ours"] == pytest.approx(loss.item(), rel=1e-5)  # after training: the adapter was set back
    assert disagreements([row]) == []
    (sentence,) = disagreements([{**row, "compared": {**row["compared"], "difference": 0.006}}])
    assert "our loss" in sentence


def test_the_checkpoint_is_the_official_layout_in_8_bits_too(tmp_path):
    path = tmp_path / "toy.safetensors"
    write_checkpoint(path, TOY, torch.float8_e4m3fn)
    info = inspect(path)
    assert (info.config.dim, info.config.num_layers, info.config.variant) == (TOY.dim, TOY.num_layers, "t2v")
    tensors = load_file(path)
    assert tensors["blocks.0.ffn.0.weight"].dtype == torch.float8_e4m3fn
    assert tensors["blocks.0.ffn.0.bias"].dtype == torch.bfloat16


def test_settings_name_options_of_the_job():
    setting = Setting.parse("precision=fp8 keep_attention=3 offload_inputs=true compile=static clips=64x32x5,64x64x1")
    assert (setting.memory.keep_attention, setting.memory.offload_inputs, setting.memory.compile) == (3, True, "static")
    assert setting.clips == ("64x32x5", "64x64x1")
    assert setting.plan == "precision=fp8 keep_attention=3 offload_inputs=True compile=static"
    with pytest.raises(ConfigError, match="checkpoint_all"):
        Setting.parse("checkpoint_all=1")
    with pytest.raises(ConfigError, match="compile"):
        Setting.parse("compile=sometimes")
    with pytest.raises(ConfigError, match="fp7"):
        Setting.parse("precision=fp7")


def test_clips_must_fit_the_model(tmp_path):
    assert Clip.parse("832x480x33").tokens(MODELS["14b"]) == 14040
    assert Clip.parse("1280x704x121").tokens(MODELS["5b"]) == 27280
    with pytest.raises(ValueError, match="multiples of 32"):
        Clip.parse("832x496x33").tokens(MODELS["5b"])


def test_the_roofline_is_the_sum_of_the_measured_times():
    config = WanConfig(dim=128, ffn_dim=256, num_heads=1, num_layers=10)
    sizes = ("8x128x128", "8x128x256", "8x256x128")
    rates = {f"bf16 {way} {size}": {"s": 1.0} for way in ("forward", "backward") for size in sizes}
    for keys in (8, 512):
        rates |= {f"attention fwd 1x8x{keys} a": {"s": 1.0}, f"attention fwd+bwd 1x8x{keys} a": {"s": 3.0}}
    rates["attention fwd 1x8x8 b"] = {"s": 0.5}  # a faster one
    work = Work(config, 8, "bf16", True, 4)
    # A block: 8 products in 2 passes, 7 of them once more, cross-attention 4, self-attention 3; 6 compute that again.
    assert roofline(work, rates) == pytest.approx(10 * (16 + 7 + 4 + 3) + 6 * 0.5)
    assert roofline(Work(config, 8, "bf16", True, 4, 5), rates) == pytest.approx(10 * (16 + 4 + 3) + 5 * 7 + 5 * 0.5)
    assert roofline(Work(config, 8, "bf16", False, 0), rates) == pytest.approx(10 * (16 + 3 + 3))
    assert roofline(Work(config, 8, "fp8", True, 4), rates) is None


def test_all_rates_of_a_step_are_measured():
    config = WanConfig(dim=128, ffn_dim=256, num_heads=1, num_layers=2, text_len=16)
    rates = measure_ceilings(config, 32, fp8=False)
    floor = roofline(Work(config, 32, "bf16", True, 1), rates)
    assert floor is not None
    assert floor > 0


def test_what_the_host_launches_slowly_is_told_from_what_the_device_computes_slowly(monkeypatch):
    clock = [0.0]

    def take(seconds):
        clock[0] += seconds

    monkeypatch.setattr(ceilings, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(ceilings, "_synchronize", lambda: take(9.0))  # the device, long busy
    assert ceilings.launching_share(lambda: take(1.0 / ceilings.QUEUED)) == pytest.approx(0.1)
    monkeypatch.setattr(ceilings, "_synchronize", lambda: take(0.0))
    assert ceilings.launching_share(lambda: take(1e-3)) == pytest.approx(1.0)


def test_kernels_are_summed_by_what_they_are_for():
    kernels = [
        Kernel("nvjet_sm90_tst_128x256_64x4_2x1_v_bz_TNT", 0, 10),
        Kernel("void flash::device_kernel<cutlass::something>", 10, 15),
        Kernel("triton_poi_fused_add_mul_0", 15, 18),
        Kernel("Memcpy HtoD (Pinned -> Device)", 2, 6),  # beside the product
        Kernel("void at::native::vectorized_elementwise_kernel<4>", 20, 21),
    ]
    summary = summarize([kernel._replace(start=kernel.start * 1e6, end=kernel.end * 1e6) for kernel in kernels])
    assert summary["classes_s"] == {"gemm": 10, "attention": 5, "copy": 4, "compiled": 3, "elementwise": 1}
    assert (summary["busy_s"], summary["idle_s"], summary["kernels"]) == (19, 2, 5)
    assert summary["longest"][0][1:] == [1, 10]


def test_rows_are_replaced_and_carry_the_fastest_peer(tmp_path):
    report = read_report(tmp_path / "speed.json")
    memory = {"checkpointing": True, "keep_attention": 0}
    row = {"clip": str(CLIP), "precision": "bf16", "products": "bfloat16", "plan": "a", "memory": memory, "s": 4.0}
    for plan, seconds in (("a", 4.0), ("b", 3.0), ("a", 2.0)):
        add_ours(report, "toy", {**row, "plan": plan, "s": seconds})
    for setting, seconds in (("--sdpa", 6.0), ("--flash3", 5.0), ("--sdpa", 4.5)):
        add_peer(report, "toy", {"clip": str(CLIP), "peer": "musubi-tuner", "setting": setting, "s": seconds})
    write_report(tmp_path / "speed.json", report)
    kept = read_report(tmp_path / "speed.json")
    assert [(row["plan"], row["ours_s"]) for row in kept["rows"]] == [("a", 2.0), ("b", 3.0)]
    assert all((row["peer_s"], row["peer_setting"]) == (4.5, "--sdpa") for row in kept["rows"])
    assert "| 2.00 |" in table(kept)
    assert "4.50 (musubi-tuner, sdpa)" in table(kept)
    assert "2.25x" in table(kept)


def test_the_records_of_the_peer_become_rows(tmp_path):
    clips = [CLIP, Clip(64, 64, 1)]
    peer = musubi.Peer(
        checkout=tmp_path, model_name="toy", model=tmp_path, clips=clips, work=tmp_path, steps=2, warmup=1
    )
    shape = [1, *CLIP.latent_shape(TOY)]
    lines = [{"shape": shape, "s": s, "first": False, "peak_reserved_gb": s} for s in (9.0, 2.0, 3.0)]
    records = tmp_path / "records.jsonl"
    records.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (row,) = musubi.read_records(records, peer, TOY, "--sdpa")  # it was broken off before the second clip
    assert (row["s"], row["s_min"], row["s_max"], row["steps"], row["first_step_s"]) == (2.5, 2.0, 3.0, 2, 9.0)
    assert row["peak_reserved_gb"] == 9.0
    text = musubi.write_data(tmp_path / "data", peer, TOY).read_text()
    assert text.count("num_repeats = 3") == 2
    stored = load_file(tmp_path / "data" / str(CLIP) / "cache" / "item_00000-005_0064x0032_wan.safetensors")
    assert torch.equal(stored["latents_2x4x8_bfloat16"], random_pair(CLIP, TOY)[0])


def test_the_job_has_a_sample_of_each_clip(tmp_path, model):
    job = make_job(tmp_path, model, [CLIP, Clip(64, 64, 1)], 3)
    assert [sample.shape for sample in job.data.samples] == [(16, 2, 4, 8), (16, 1, 8, 8)]
