"""What the buttons of a training node ask of its run, on the real host: stop, use, pause, go on, save, preview."""

import json
import urllib.error
import urllib.request

import pytest
from wan_train.core.adapters.formats import read_lora
from wan_train.core.train.events import EventReader, read_history
from wan_train.tests.host.graphs import dit, node, one_stage, two_stages
from wan_train.tests.host.runs import await_step, new_folder, run_folders, starts_of, succeeded, until, worker_pids

LONG = {"steps": 100_000, "checkpoint_every": 1_000_000}  # goes on as long as it is asked things
TOKEN = "0b7e1d9c-6d55-4f0a-9a43-0d3e6f6f3a11"


def ask(host, run, what):
    """Status and body of the answer."""
    request = urllib.request.Request(f"{host.url}/wan_train/runs/{run}/ask/{what}", method="POST")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def begin(host, prompt, step=2, **extra):
    """Queue, and wait until the run has made more than `step` steps."""
    before = run_folders(host)
    prompt_id = host.queue(prompt, extra or None)
    folder = new_folder(host, before)
    await_step(folder, step)
    until(lambda: "save" in describe(host, folder)["asks"], "the node has seen the step, too")
    return prompt_id, folder


def describe(host, folder):
    return host.server.request(f"/wan_train/runs/{folder.name}")


def await_state(host, folder, state):
    def told():
        found = describe(host, folder)
        assert found["state"] in ("waiting", "training", "stopping", state)
        return found if found["state"] == state else None

    return until(told, f"{folder.name} is {state}")


def steps_of(folder, kind):
    return [e["step"] for e in EventReader(folder / "events.jsonl").read() if e["event"] == kind]


def test_stop_ends_the_prompt_without_a_failure_and_keeps_a_checkpoint(host):
    prompt_id, folder = begin(host, one_stage(lora_name="asked_stop", seed=71, **LONG))
    assert describe(host, folder)["asks"] == ["stop", "use", "pause", "save"]
    assert ask(host, folder.name, "stop") == (200, {})
    entry = host.wait(prompt_id)
    assert entry["status"]["messages"][-1][0] == "execution_interrupted"
    assert list((folder / "checkpoints").glob("step-*"))
    told = describe(host, folder)
    assert (told["state"], told["asks"]) == ("stopped", [])
    assert "press Run to go on" in told["notes"]
    status, answer = ask(host, folder.name, "stop")
    assert (status, "press Run" in answer["error"]) == (404, True)


def test_stop_and_use_runs_what_follows_with_the_lora_of_now_and_queued_again_it_goes_on(host):
    prompt = one_stage(lora_name="asked_use", seed=72, **LONG)
    prompt["pair"] = node("MergeStages", high=["high_train", 0], name="asked_use", precision="fp32", key_style="comfyui",
                          rank=0, author="", description="", second_strength=1.0)  # fmt: skip
    prompt_id, folder = begin(host, prompt)
    assert ask(host, folder.name, "use") == (200, {})
    entry = host.wait(prompt_id)
    assert succeeded(entry)
    step = starts_of(folder)[0] + read_history(folder / "events.jsonl").last_step["step"]
    assert f"the LoRA of step {step} is used" in entry["outputs"]["high_train"]["text"][0]
    shipped = read_lora(host.base / "models" / "loras" / "asked_use_high_noise.safetensors")
    assert shipped.metadata["ss_steps"] == str(step)
    assert shipped.metadata["modelspec.trigger_phrase"] == "shp"
    again = host.queue(prompt)
    await_step(folder, step)
    host.interrupt(again)
    host.wait(again)
    assert starts_of(folder) == [0, step]


def test_a_checkpoint_is_offered_as_a_lora_and_its_files_are_called_by_the_training(host):
    before = run_folders(host)
    prompt = one_stage(lora_name="midway", seed=79, steps=4, checkpoint_every=2, keep_last=2)
    assert succeeded(host.run(prompt))
    (folder,) = run_folders(host) - before
    name = f"{folder.name} / step 2"
    info = host.object_info()["WanLoRAFromFile"]["input"]["required"]["lora_file"]
    assert name in (info[0] if isinstance(info[0], list) else info[1]["options"])
    shipping = {"precision": "fp32", "key_style": "comfyui", "rank": 0, "author": "", "description": ""}
    merging = {
        "file": node("WanLoRAFromFile", lora_file=name, stage="auto"),
        "pair": node("MergeStages", high=["file", 0], name="from_checkpoint", second_strength=1.0, **shipping),
        **prompt,
        "whole": node("MergeStages", high=["high_train", 0], name="", second_strength=1.0, **shipping),
    }
    assert succeeded(host.run(merging))
    loras = host.base / "models" / "loras"
    part, whole = (read_lora(loras / f"{stem}_high_noise.safetensors") for stem in ("from_checkpoint", "midway"))
    assert (part.metadata["ss_steps"], whole.metadata["ss_steps"]) == ("2", "4")
    for key in ("modelspec.architecture", "modelspec.trigger_phrase", "modelspec.timestep_range"):
        assert part.metadata[key] == whole.metadata[key]
    assert json.loads(part.metadata["wantrain.job"])["name"] == "midway"


def test_files_without_a_name_of_their_own_have_that_of_the_training_also_where_it_ends_like_a_counted_one(host):
    prompt = one_stage(lora_name="drawing_v2", seed=85, steps=1)
    shipping = {"precision": "fp32", "key_style": "comfyui", "rank": 0, "author": "", "description": ""}
    prompt["pair"] = node("MergeStages", high=["high_train", 0], name="", second_strength=1.0, **shipping)
    entry = host.run(prompt)
    assert succeeded(entry)
    assert (host.base / "models" / "loras" / "drawing_v2_high_noise.safetensors").is_file(), entry["outputs"]["pair"]


@pytest.mark.grid(2)
@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("x_high_noise", "x"), ("x_v2_high_noise", "x_v2"), ("x_low_noise_v2", "x"), ("x_v2", "x"),
        ("x_high_noise_step000250", "x_step000250"), ("x_low_noise_step000250_v2", "x_step000250"),
    ],
)  # fmt: skip
def test_files_that_are_made_of_others_are_called_by_them(comfy, tmp_path, file, name):
    """Without the expert, which follows again, and without the number that a file was given."""
    from wan_train.nodes.merge_nodes import _name_of
    from wan_train.nodes.sockets import LoraHandle

    assert _name_of(LoraHandle(tmp_path / f"{file}.safetensors", "high", file)) == name


def test_save_now_writes_a_checkpoint_and_the_run_goes_on(host):
    prompt_id, folder = begin(host, one_stage(lora_name="asked_save", seed=73, **LONG))
    assert ask(host, folder.name, "save") == (200, {})
    (saved,) = until(lambda: steps_of(folder, "checkpoint"), "a checkpoint")
    await_step(folder, saved)
    assert ask(host, folder.name, "preview")[0] == 409  # no VAE is connected
    assert ask(host, folder.name, "stop") == (200, {})
    host.wait(prompt_id)


def test_preview_now_is_decoded(host):
    prompt = one_stage(
        lora_name="asked_preview", seed=74, **LONG, preview_every=1_000_000, preview_steps=2, vae=["vae", 0]
    )
    prompt_id, folder = begin(host, prompt)
    assert "preview" in describe(host, folder)["asks"]
    assert ask(host, folder.name, "preview") == (200, {})
    until(lambda: describe(host, folder)["previews"], "a preview")
    assert [step for step, _ in describe(host, folder)["previews"]] == steps_of(folder, "preview")
    assert ask(host, folder.name, "stop") == (200, {})
    host.wait(prompt_id)


def test_a_paused_run_has_no_process_and_goes_on_from_its_checkpoint(host):
    prompt_id, folder = begin(host, one_stage(lora_name="asked_pause", seed=75, **LONG))
    assert ask(host, folder.name, "pause") == (200, {})
    told = await_state(host, folder, "paused")
    assert told["asks"] == ["go_on", "use", "stop"]
    assert "paused after step" in told["line"]
    assert worker_pids(folder) == []
    (step,) = steps_of(folder, "checkpoint")
    assert ask(host, folder.name, "go_on") == (200, {})
    await_step(folder, step)
    assert starts_of(folder) == [0, step]
    until(lambda: "pause" in describe(host, folder)["asks"], "it can be paused again")
    assert ask(host, folder.name, "pause") == (200, {})
    await_state(host, folder, "paused")
    assert ask(host, folder.name, "stop") == (200, {})
    assert host.wait(prompt_id)["status"]["messages"][-1][0] == "execution_interrupted"


def test_a_pause_is_for_both_experts_so_that_none_takes_the_gpu_meanwhile(host):
    before = run_folders(host)
    prompt_id = host.queue(two_stages(lora_name="asked_both", seed=80, **LONG))

    def begun():
        found = [path for path in run_folders(host) - before if (path / "job.json").exists()]
        return found if len(found) == 2 else []

    folders = until(begun, "both run folders")
    trained = until(lambda: [path for path in folders if "pause" in describe(host, path)["asks"]], "one trains")
    assert ask(host, trained[0].name, "pause") == (200, {})
    for folder in folders:
        await_state(host, folder, "paused")
        assert worker_pids(folder) == []
    (other,) = set(folders) - set(trained)
    assert steps_of(other, "step") == []
    assert describe(host, other)["asks"] == ["go_on", "stop"]
    assert ask(host, other.name, "go_on") == (200, {})
    made = len(steps_of(trained[0], "step"))
    until(lambda: len(steps_of(trained[0], "step")) > made or steps_of(other, "step"), "one of them goes on")
    host.interrupt(prompt_id)
    assert host.wait(prompt_id)["status"]["messages"][-1][0] == "execution_interrupted"


def shown(host, **query):
    words = "&".join(f"{name}={value.replace(' ', '+')}" for name, value in query.items())
    return host.server.request(f"/wan_train/shown?{words}")["run"]


def test_the_page_finds_a_nodes_run_by_its_token_whatever_it_is_called_now(host):
    before = run_folders(host)
    host.events.clear()
    workflow = {"nodes": [{"id": "high_train", "type": "TrainLoRAStage", "properties": {"wan_node": TOKEN}}]}
    extra = {"extra_pnginfo": {"workflow": workflow}}
    prompt = one_stage(lora_name="known", seed=76, steps=2)
    assert succeeded(host.wait(host.queue(prompt, extra)))
    (folder,) = run_folders(host) - before
    updates = [e.data for e in host.events if e.type == "wan_train.update" and e.data["node_id"] == "high_train"]
    assert {(u["token"], u["name"], u["stage"], u["run"]) for u in updates} == {(TOKEN, "known", "high", folder.name)}
    assert shown(host, token=TOKEN, name="renamed", stage="low noise") == folder.name
    assert shown(host, name="known", stage="high noise") == folder.name
    assert shown(host, name="known", stage="low noise") == ""
    assert shown(host, name="know", stage="high noise") == ""
    assert shown(host, run=folder.name) == folder.name
    assert shown(host, run="../runs", token="another") == ""


def test_warnings_stand_on_the_node_before_the_model_is_loaded(host):
    host.events.clear()
    prompt = one_stage(lora_name="warned", seed=77, steps=2, warmup_steps=3)
    assert succeeded(host.run(prompt))
    first = next(e.data for e in host.events if e.type == "wan_train.update")
    assert first["losses"] == []
    assert "- warmup_steps (3) is not shorter than the run (2 steps): the learning rate rises" in first["notes"]


@pytest.mark.parametrize("meant", [False, True])
def test_the_other_experts_file_is_refused_unless_it_is_meant(host, meant):
    prompt = one_stage("low", lora_name="swapped", seed=78, steps=1, allow_other_expert=meant)
    prompt["low_dit"] = dit("wan_mini_high_noise.safetensors")
    entry = host.run(prompt)
    if meant:
        assert succeeded(entry)
        assert "looks like the high noise expert" in entry["outputs"]["low_train"]["text"][0]
    else:
        error = dict(entry["status"]["messages"])["execution_error"]
        assert "is the high noise expert by its name, but the stage is low noise" in error["exception_message"]
        assert "allow_other_expert" in error["exception_message"]
