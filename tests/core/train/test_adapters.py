"""Kinds of adapters and their files in a run: it goes on exactly, under every plan, and refuses what can't work."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from wan_train.core.adapters.formats import write_lora
from wan_train.core.adapters.other_files import read_adapter
from wan_train.core.adapters.start_from import adapter_identity
from wan_train.core.errors import ConfigError
from wan_train.core.plan.decision import decide
from wan_train.core.plan.planning import make_planner
from wan_train.core.settings.adapter import AdapterOptions
from wan_train.core.settings.job import job_from_json, job_to_json
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.train.build import job_warnings
from wan_train.core.train.events import EventReader, EventWriter, read_history
from wan_train.core.train.label import describe_lora
from wan_train.core.train.run import RunStoppedError, run_job
from wan_train.core.train.run_folder import RunFolder
from wan_train.core.train.start import check_methods, check_start
from wan_train.core.wan.checkpoint import inspect
from wan_train.tests.core.adapters.helpers import linear_layers, random_modules
from wan_train.tests.core.plan.test_estimate import CARD
from wan_train.tests.core.train.helpers import SIZE, train_in_folder

CPU = torch.device("cpu")
WAYS = {
    "rules": {"rslora": True, "exclude": "ffn.2", "ranks": "cross_attn = 1, 0"},
    "dora": {"kind": "dora"},
    "loha": {"kind": "loha"},
    "lokr": {"kind": "lokr"},
    "lokr full": {"kind": "lokr", "lokr_full": True, "lokr_factor": 4},
    "oft": {"kind": "oft", "rank": 4, "oft_constraint": 1.0},
    "tlora": {"kind": "tlora", "rank": 4},
    "rank dropout": {"rank_dropout": 0.5},
    "module dropout": {"module_dropout": 0.5},
    "dora drops": {"kind": "dora", "rank_dropout": 0.3, "module_dropout": 0.3},
    "lokr drops": {"kind": "lokr", "rank_dropout": 0.3, "module_dropout": 0.3},
    "tlora drops": {"kind": "tlora", "rank": 4, "dropout": 0.1, "rank_dropout": 0.3, "module_dropout": 0.3},
}


@pytest.fixture(scope="module")
def plain_losses():
    """By the adapter, the losses of a job without any of the plans."""
    return {}


@pytest.fixture
def lora(tmp_path):
    """A LoRA of rank 3 for the job's model."""
    layers = {path: shape for path, shape in linear_layers(SIZE).items() if path.startswith("blocks.")}
    return write_lora(tmp_path / "other.safetensors", random_modules(layers, 3), metadata={}, dtype=torch.float32)


def with_adapter(job, **options):
    made = replace(job, adapter=AdapterOptions(**{"rank": 2, "alpha": 4.0, **options}))
    return replace(
        made,
        start_identity=adapter_identity(made.adapter.start_from, "start_from"),
        merge_identity=adapter_identity(made.adapter.merge_into_base, "merge_into_base"),
    )


def stopped_and_gone_on(tmp_path, job, between=lambda: None):
    folder = RunFolder(tmp_path / "runs" / "broken")
    folder.path.mkdir(parents=True)
    folder.write_job(job)
    events = EventWriter(folder.events_path)
    with pytest.raises(RunStoppedError):
        run_job(folder, events, CPU, lambda: max(read_history(folder.events_path).losses, default=0) >= 3)
    between()
    return load_file(run_job(folder, events, CPU, lambda: False))


@pytest.mark.grid(8)
@pytest.mark.parametrize("way", WAYS)
def test_a_run_goes_on_to_the_bit_and_learns_something_else_than_a_plain_one(tmp_path, job, plain_losses, way):
    made = with_adapter(job, **WAYS[way])
    assert made.key != with_adapter(job).key
    assert job_from_json(job_to_json(made)) == made
    losses, whole, _ = train_in_folder(tmp_path, made, "whole", CPU)
    if "lora" not in plain_losses:
        plain_losses["lora"], _, _ = train_in_folder(tmp_path, with_adapter(job), "plain", CPU)
    assert losses != plain_losses["lora"]
    broken = stopped_and_gone_on(tmp_path, made)
    assert whole.keys() == broken.keys()
    assert all(torch.equal(value, broken[key]) for key, value in whole.items())
    assert read_adapter(next((tmp_path / "runs" / "whole").glob("*.safetensors"))).modules


@pytest.mark.grid(6)
@pytest.mark.parametrize(
    "memory",
    [
        {"checkpointing": False}, {"streamed_blocks": 2}, {"streamed_blocks": 1, "offload_inputs": True},
        {"split_blocks": True}, {"ffn_pieces": 2}, {"keep_attention": 1},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize(
    "way", ["dora", "loha", "lokr", "oft", "tlora", "rank dropout", "module dropout", "lokr drops", "tlora drops"]
)
def test_every_plan_gives_the_same_losses(tmp_path, job, plain_losses, way, memory):
    made = replace(with_adapter(job, **WAYS[way]), memory=MemoryOptions(plan="manual"))
    if way not in plain_losses:
        plain_losses[way], _, _ = train_in_folder(tmp_path, made, "plain", CPU)
    found, _, _ = train_in_folder(tmp_path, replace(made, memory=MemoryOptions(plan="manual", **memory)), "way", CPU)
    assert found == pytest.approx(plain_losses[way], rel=1e-5)


@pytest.mark.parametrize(
    ("memory", "says"),
    [
        ({"compile": "static"}, "compile is static, which works with the adapter lora only, not with lokr"),
        ({"compile": "dynamic"}, "compile is dynamic, which works with the adapter lora only, not with lokr"),
        ({"keep_linears": 1, "compile": "off"}, "keep_linears is 1, .* here they do not. compile is off"),
    ],
    ids=str,
)
def test_what_knows_plain_loras_only_is_refused_by_name(job, memory, says):
    made = with_adapter(job, kind="lokr")
    with pytest.raises(ConfigError, match=says):
        check_start(replace(made, memory=MemoryOptions(**memory)), inspect(made.model.path))
    check_start(made, inspect(made.model.path))


@pytest.mark.parametrize("compile", ["auto", "kernels"])
def test_blocks_by_kernels_keep_products_of_every_kind(job, monkeypatch, compile):
    info = inspect(job.model.path)
    made = replace(with_adapter(job, kind="lokr"), memory=MemoryOptions(keep_linears=1, compile=compile))
    check_start(made, info)
    with pytest.raises(
        ConfigError, match=r"with lokr only where blocks run by kernels: here they do not\. .*not on the device cpu"
    ):
        decide(made, info, CPU)
    monkeypatch.setattr("wan_train.core.kernels.available.kernels_problem", lambda _device: None)
    found = decide(made, info, CPU)
    assert found.modes == ("kernels",)  # and by no other, whatever memory there is
    plans = list(make_planner(made, found, CARD).plans())
    assert plans
    assert {plan.compile for plan in plans} == {"kernels"}
    plain = replace(job, memory=made.memory)
    assert decide(plain, info, CPU).modes == (("off",) if compile == "auto" else ("kernels",))


def test_a_pattern_that_fits_nothing_is_refused_before_the_model_loads(job):
    made = with_adapter(job, include="attn1")
    with pytest.raises(ConfigError, match="adapter_include has the pattern 'attn1'"):
        check_start(made, inspect(made.model.path))


def test_a_run_starts_from_a_file_and_goes_on_without_it(tmp_path, job, lora):
    made = with_adapter(job, start_from=str(lora))
    losses, whole, events = train_in_folder(tmp_path, made, "whole", CPU)
    assert losses[0] != train_in_folder(tmp_path, with_adapter(job), "plain", CPU)[0][0]
    said = [event["message"] for event in events if event["event"] == "warning"]
    assert any("starts from other.safetensors: 20 of 20 layers" in message for message in said)
    assert any("rank 3, which was brought to" in message for message in said)
    broken = stopped_and_gone_on(tmp_path, made, between=lora.unlink)
    assert all(torch.equal(value, broken[key]) for key, value in whole.items())
    with pytest.raises(ConfigError, match="start_from is"):
        check_start(made, inspect(made.model.path))


def test_a_run_learns_on_a_base_with_a_lora_in_it(tmp_path, job, lora):
    made = with_adapter(job, merge_into_base=str(lora), merge_strength=0.5)
    losses, whole, _ = train_in_folder(tmp_path, made, "whole", CPU)
    assert losses[0] != train_in_folder(tmp_path, with_adapter(job), "plain", CPU)[0][0]
    broken = stopped_and_gone_on(tmp_path, made)
    assert all(torch.equal(value, broken[key]) for key, value in whole.items())
    swapped = replace(made, memory=MemoryOptions(plan="manual", streamed_blocks=2))
    assert train_in_folder(tmp_path, swapped, "swapped", CPU)[0] == pytest.approx(losses, rel=1e-5)


def test_the_key_holds_the_content_of_the_files_and_not_their_paths(tmp_path, job, lora):
    copy = lora.rename(tmp_path / "elsewhere.safetensors")
    lora.write_bytes(copy.read_bytes())
    for name in ("start_from", "merge_into_base"):
        one, two = with_adapter(job, **{name: str(lora)}), with_adapter(job, **{name: str(copy)})
        assert one.key == two.key != with_adapter(job).key
    assert with_adapter(job, start_from=str(lora)).key != with_adapter(job, merge_into_base=str(lora)).key
    merged = with_adapter(job, merge_into_base=str(lora))
    assert merged.key != with_adapter(job, merge_into_base=str(lora), merge_strength=0.5).key


def test_a_file_that_changed_is_refused(job, lora):
    for name in ("start_from", "merge_into_base"):
        made = replace(with_adapter(job, **{name: str(lora)}), start_identity="x", merge_identity="x")
        with pytest.raises(ConfigError, match=rf"{name} is .* \(its content changed\)"):
            check_start(made, inspect(made.model.path))


def test_merging_does_not_go_with_a_corrected_base(tmp_path, job, lora):
    made = with_adapter(job, merge_into_base=str(lora))
    made = replace(made, model=replace(made.model, precision="ara", recovery_adapter=str(lora)))
    with pytest.raises(ConfigError, match="does not go with the precision ara"):
        check_start(made, inspect(made.model.path))


def test_who_left_alpha_behind_is_told_before_the_start(job):
    assert any("alpha is still 16" in text for text in job_warnings(replace(job, adapter=AdapterOptions(rank=32))))
    assert any("lokr_full has no effect" in text for text in job_warnings(with_adapter(job, lokr_full=True)))
    assert any("merge_strength has no effect" in text for text in job_warnings(with_adapter(job, merge_strength=0.3)))


def test_who_sets_what_an_adapter_has_no_use_for_is_told(job):
    for kind, option, is_told in (
        ("oft", {"dropout": 0.1}, True),
        ("oft", {"rank_dropout": 0.1}, True),
        ("oft", {"module_dropout": 0.1}, False),
        ("lokr", {"rank_dropout": 0.1}, False),
        ("lora", {"tlora_power": 2.0}, True),
        ("tlora", {"tlora_power": 2.0, "tlora_min_rank": 1, "tlora_orthogonal": False}, False),
        ("lora", {"oft_constraint": 2.0}, True),
    ):
        found = job_warnings(with_adapter(job, kind=kind, **option))
        assert any("has no effect" in text for text in found) == is_told, (kind, option, found)
    said = job_warnings(with_adapter(job, kind="tlora", tlora_min_rank=5))
    assert any("tlora_min_rank (5) is more than the rank (2)" in text for text in said)


def test_a_tlora_starts_from_the_file_of_a_lora(tmp_path, job, lora):
    made = with_adapter(job, kind="tlora", start_from=str(lora))
    check_start(made, inspect(made.model.path))
    _, _, events = train_in_folder(tmp_path, made, "whole", CPU)
    assert any(
        "starts from other.safetensors: 20 of 20" in str(event) for event in events if event["event"] == "warning"
    )


def test_lora_plus_without_a_second_matrix_is_refused_before_the_model_loads(job):
    for kind in ("lora", "dora", "tlora"):
        check_methods(replace(with_adapter(job, kind=kind), optimizer=replace(job.optimizer, lora_plus=16.0)))
    for kind in ("loha", "lokr", "oft"):
        with pytest.raises(ConfigError, match=f"the adapter {kind} has no second matrix"):
            check_methods(replace(with_adapter(job, kind=kind), optimizer=replace(job.optimizer, lora_plus=16.0)))


def test_the_file_says_what_it_is(job):
    said = describe_lora(with_adapter(job, kind="lokr", lokr_factor=4), step=1)
    assert said.network_module == "networks.lokr"
    assert said.network_args == {"kind": "lokr", "lokr_factor": "4"}
    assert describe_lora(with_adapter(job, rslora=True, alpha=0.0), step=1).alpha == pytest.approx(2 * 2**0.5)
    assert describe_lora(with_adapter(job), step=1).network_args == {}


def test_events_of_an_untouched_run_say_nothing_new(tmp_path, job):
    _, _, events = train_in_folder(tmp_path, with_adapter(job), "plain", CPU)
    assert not any("start_from" in str(event) for event in events if event["event"] == "warning")
    assert EventReader(tmp_path / "runs" / "plain" / "events.jsonl").read() == events
