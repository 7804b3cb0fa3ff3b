import json
from dataclasses import replace

import pytest
from wan_train.core.data.pairs import data_spec
from wan_train.core.data.types import LatentCache, LatentEntry, TextCache, TextEntry
from wan_train.core.errors import ConfigError, RunError
from wan_train.core.safe_json import seal
from wan_train.core.settings.job import (
    SCHEMA,
    DataSpec,
    Job,
    ModelSpec,
    TrainSample,
    job_from_json,
    job_to_json,
    stage_window,
)
from wan_train.core.settings.memory import MemoryOptions
from wan_train.core.settings.plain import PLAIN, chosen
from wan_train.core.settings.schedule import ScheduleOptions
from wan_train.core.settings.stage import settings_from_names
from wan_train.core.train.run_folder import RunFolder


def test_json_round_trip(job):
    assert job_from_json(job_to_json(job)) == job


def test_a_newer_schema_is_refused(job):
    data = json.loads(job_to_json(job))
    data["schema"] = SCHEMA + 1
    with pytest.raises(RunError, match=f"schema {SCHEMA + 1}.*update"):
        job_from_json(json.dumps(data))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d["loop"].update(stepps=3), "unknown field 'stepps'"),
        (lambda d: d["loop"].update(steps="3"), "steps is '3'.*a whole number"),
        (lambda d: d.update(stage="middle"), "must be one of 'high', 'low', 'single'"),
        (lambda d: d.pop("model"), "lacks the field 'model'"),
        (lambda d: d["adapter"].update(rank=0), "rank must be at least 1"),
        (lambda d: d["memory"].update(plan="best"), "must be one of 'auto', 'manual'"),
        (
            lambda d: d["memory"].update(budget_gb=-1.0),
            r"budget_gb must be 0 \(what is free\) or a number of GB, got -1.0",
        ),
        (lambda d: d["memory"].update(budget_gb=float("nan")), "budget_gb must be 0"),
    ],
)
def test_a_wrong_job_is_refused_by_name(job, edit, message):
    data = json.loads(job_to_json(job))
    edit(data)
    with pytest.raises(ConfigError, match=message):
        job_from_json(json.dumps(data))


def test_a_field_of_a_newer_version_is_told_from_a_mistake(job):
    """A program sealed it; what a person wrote has no seal."""
    data = json.loads(job_to_json(job))
    data["loop"]["warp"] = 9
    with pytest.raises(RunError, match=r"loop has the unknown field 'warp': .* newer version\. Update"):
        job_from_json(json.dumps(seal(data)))
    with pytest.raises(ConfigError, match="known fields"):
        job_from_json(json.dumps(data))


def test_broken_json_is_refused():
    with pytest.raises(RunError, match="not valid JSON"):
        job_from_json('{"schema": 1,')


def test_runs_of_earlier_versions_are_still_found():
    """The key of version 0.1.0 for the same content and settings."""
    sample = TrainSample(
        name="a", latents_path="a", latents_key="la", shape=(16, 2, 4, 4), text_path="t", text_key="ta", caption="c"
    )
    data = DataSpec(samples=(sample,), empty_text_path="e", empty_text_key="ek", text_dim=16)
    assert Job(name="x", stage="high", model=ModelSpec(path="m", identity="i"), data=data).key == "1b749a1ddc42799c"


def of_schema_1(job: Job, **memory) -> str:
    """Its text as version 0.1.0 wrote it: every memory option has a value."""
    data = json.loads(job_to_json(job))
    return json.dumps({**data, "schema": 1, "memory": {**data["memory"], **PLAIN, **memory}})


def test_what_a_job_of_schema_1_left_at_its_default_is_auto(job):
    found = job_from_json(of_schema_1(job, keep_attention=3, stream_from="pageable", streamed_blocks=4, budget_gb=8.0))
    assert found.memory == MemoryOptions(keep_attention=3, stream_from="pageable", streamed_blocks=4, budget_gb=8.0)
    assert (found.schema, found.key) == (SCHEMA, job.key)
    assert job_from_json(job_to_json(found)) == found
    assert job_from_json(of_schema_1(job)) == job


def test_what_a_manual_job_of_schema_1_says_stays(job):
    found = job_from_json(of_schema_1(job, plan="manual", checkpointing=False))
    assert chosen(found.memory) == {**PLAIN, "checkpointing": False}
    assert found.warnings() == []
    assert found.key == job.key


def test_a_chosen_plain_value_of_schema_2_stays_a_choice(job):
    memory = MemoryOptions(checkpointing=True, streamed_blocks=0, stream_from="pinned")
    found = job_from_json(job_to_json(replace(job, memory=memory)))
    assert found.memory == memory
    assert json.loads(job_to_json(job))["memory"]["checkpointing"] is None


@pytest.mark.parametrize("value", [1, "true", [], {}])
def test_a_wrong_type_of_schema_1_is_refused_by_name(job, value):
    with pytest.raises(ConfigError, match=r"memory\.checkpointing is .*; it must be true or false"):
        job_from_json(of_schema_1(job, checkpointing=value))


def test_a_sealed_job_of_schema_1_is_read(tmp_path, job):
    folder = RunFolder(tmp_path)
    folder.job_path.write_text(json.dumps(seal(json.loads(of_schema_1(job, split_blocks=True)))))
    assert folder.read_job().memory == MemoryOptions(split_blocks=True)
    folder.job_path.write_text(folder.job_path.read_text().replace('"split_blocks": true', '"split_blocks": false'))
    with pytest.raises(RunError, match="is damaged or was changed"):
        folder.read_job()


def test_key_follows_content_and_not_names_or_places(job):
    loop = job.loop
    moved = replace(job.data.samples[0], latents_path="/elsewhere", name="renamed")
    same = [
        replace(job, name="other"),
        replace(job, device="cuda:1"),
        replace(job, memory=replace(job.memory, checkpointing=False)),
        replace(job, memory=replace(job.memory, plan="manual", budget_gb=8.0)),
        replace(job, model=replace(job.model, path="/elsewhere")),
        replace(job, loop=replace(loop, keep_last=9, checkpoint_every=7, validate_every=3)),
        replace(job, loop=replace(loop, steps=999)),  # constant schedule: a longer run goes on from a shorter one
        replace(job, data=replace(job.data, samples=(moved, *job.data.samples[1:]))),
    ]
    assert {j.key for j in same} == {job.key}
    edited = replace(job.data.samples[0], text_key="another caption")
    different = [
        replace(job, stage="high"),
        replace(job, model=replace(job.model, identity="other")),
        replace(job, loop=replace(loop, seed=1)),
        replace(job, adapter=replace(job.adapter, rank=8)),
        replace(job, optimizer=replace(job.optimizer, learning_rate=2e-2)),
        replace(job, data=replace(job.data, samples=(edited, *job.data.samples[1:]))),
        replace(job, data=replace(job.data, samples=job.data.samples[1:])),
        replace(job, schedule=ScheduleOptions(kind="cosine")),
        replace(job, schedule=ScheduleOptions(kind="cosine"), loop=replace(loop, steps=999)),
    ]
    assert len({j.key for j in different} | {job.key}) == len(different) + 1


def test_settings_without_effect_are_told(job):
    quiet = job.warnings()
    assert quiet == []
    schedule = ScheduleOptions(floor=0.1, power=2.0, warmup_steps=50)
    loud = replace(
        job, schedule=schedule, timesteps=replace(job.timesteps, shift=7.0, sigmoid_scale=2.0),
        loop=replace(job.loop, validate_every=5),
    ).warnings()  # fmt: skip
    assert [w.split()[0] for w in loud] == [
        "timestep_shift", "sigmoid_scale", "lr_floor", "lr_power", "warmup_steps", "validate_every",
    ]  # fmt: skip


@pytest.mark.parametrize(("cycles", "is_told"), [(1, False), (3, False), (8, True), (50, True)])
def test_more_cycles_than_steps_are_told(job, cycles, is_told):
    made = replace(
        job,
        loop=replace(job.loop, steps=10),
        schedule=ScheduleOptions(kind="cosine_restarts", cycles=cycles, warmup_steps=2),
    )
    assert any(text.startswith(f"lr_cycles ({cycles})") for text in made.warnings()) == is_told


def test_all_samples_held_out_is_refused(job):
    held = tuple(replace(s, held_out=True) for s in job.data.samples)
    with pytest.raises(ConfigError, match="no sample to train on"):
        replace(job, data=replace(job.data, samples=held))


def test_memory_options_by_their_names_on_nodes():
    settings = settings_from_names({"plan": "manual", "budget_gb": 8, "streamed_blocks": 3})
    assert settings.memory == MemoryOptions(plan="manual", budget_gb=8.0, streamed_blocks=3)
    with pytest.raises(ConfigError, match="budget_gb must be 0"):
        settings_from_names({"budget_gb": -2.0})


def test_windows_of_the_experts():
    assert stage_window("high", 0.875) == (0.875, 1.0)
    assert stage_window("low", 0.9) == (0.0, 0.9)
    assert stage_window("single", 0.875) == (0.0, 1.0)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        stage_window("high", 875)


def test_data_spec_pairs_by_caption():
    entry = LatentEntry(path="a", key="ka", name="a.png", caption="x", shape=(16, 1, 2, 2))
    latents = LatentCache(entries=(entry,), encoder="v", latent_format="wan2.1", fps=16.0)
    texts = tuple(TextEntry(path=c or "e", key=f"k{c}", caption=c, num_tokens=1) for c in ("x", ""))
    spec = data_spec(latents, TextCache(entries=texts, encoder="t", dim=8))
    assert (spec.samples[0].text_path, spec.empty_text_path, spec.text_dim) == ("x", "e", 8)
    with pytest.raises(ConfigError, match=r"the caption of a\.png has no text embedding"):
        data_spec(latents, TextCache(entries=texts[1:], encoder="t", dim=8))
