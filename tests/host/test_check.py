"""Check: what the trainings of a workflow will take, and what is wrong with them, on the nodes that mend it."""

import http.client
import json
import shutil
import urllib.error
import urllib.request

import pytest
from wan_train.tests.host.graphs import changed, node, one_stage, two_stages
from wan_train.tests.host.runs import run_folders, succeeded
from wan_train.tests.host.test_bad_input import failure


def post(host, body, kind="application/json"):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{host.url}/wan_train/check", data, {"Content-Type": kind})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=120) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def check(host, prompt, **how):
    status, body = post(host, {"prompt": prompt, **how})
    assert status == 200, body
    return body["nodes"]


def failures(found):
    return {key: told["text"] for key, told in found.items() if told["failed"]}


def test_both_experts_are_told_and_nothing_is_started(host):
    before, seen = run_folders(host), len(host.events)
    found = check(host, two_stages(lora_name="asked", steps=6, low={"steps": 12}))
    assert failures(found) == {}
    assert set(found) == {"data", "high_dit", "low_dit", "high_train", "low_train"}
    for stage in ("high", "low"):
        said = found[f"{stage}_train"]["text"]
        assert "high: an epoch uses each sample once, times its repeats: 3 steps with batch_size 1" in said
        assert "6 steps are 2 epochs" in said
        assert "12 steps are 4 epochs" in said
        assert "in all: 18 steps" in said
        assert "on the CPU: " in said
        assert "disk: " in said
    assert found["data"]["text"].startswith("2 clips, 1 image: 3 samples an epoch")
    assert run_folders(host) == before
    assert all(event.type != "execution_start" for event in host.events[seen:])


@pytest.mark.parametrize(
    ("key", "inputs", "where", "words"),
    [
        ("data", {"folder": "input/gone"}, "data", "gone"),
        ("data", {"width": 8}, "data", "width is 8"),
        ("high_dit", {"model_name": "wan_mini_low_noise.safetensors"}, "high_train", "low noise expert by its name"),
        ("high_train", {"preview_every": 2}, "high_train", "previews need a VAE"),
        ("high_train", {"optimizer": "nothing"}, "high_train", "optimizer is 'nothing'"),
        ("high_train", {"lora_name": "a/b"}, "high_train", "lora_name"),
        ("latents", {"condition_on": "first frame"}, "high_train", "Here: set condition_on of Cache Latents."),
        ("text", {"dataset": ["other", 0]}, "text", "Here: connect one Dataset from Folder"),
        ("high_train", {"latents": 3}, "high_train", "latents has no wire"),
        ("high_train", {"latents": ["data", 0]}, "data", "Check knows Cache Latents only"),
        ("high_train", {"steps": ["vae", 0]}, "high_train", "steps comes over a wire"),
    ],
)
def test_what_is_wrong_is_said_on_the_node_that_mends_it(host, key, inputs, where, words):
    prompt = {**one_stage(lora_name="asked"), "other": one_stage()["data"]}
    found = failures(check(host, changed(prompt, key, **inputs)))
    assert list(found) == [where]
    assert words in found[where]


def test_a_training_that_does_not_fit_is_to_be_mended_on_its_node_with_disk_and_warnings(host):
    prompt = one_stage(lora_name="asked", timestep_shift=7.0)
    prompt = changed(prompt, "high_dit", budget_gb=0.01)
    found = failures(check(host, prompt))
    assert list(found) == ["high_train"]
    why, *more = found["high_train"].splitlines()
    assert "does not fit: the leanest plan takes" in why
    assert any(line.startswith("disk: ") for line in more)
    assert any(line.startswith("- timestep_shift has no effect") for line in more)
    assert any("3 steps with batch_size 1" in line for line in more)
    assert failures(check(host, changed(prompt, "high_dit", budget_gb=8.0))) == {}
    assert failures(check(host, prompt, light=True)) == {}  # which plans nothing


@pytest.mark.parametrize("light", [False, True])
def test_a_training_over_several_devices_is_told_with_the_batches_of_all(host, light):
    prompt = one_stage(lora_name="asked", device="cpu:0,cpu:1", gradient_accumulation=3)
    check(host, prompt)
    said = check(host, prompt, light=light)["high_train"]
    assert not said["failed"]
    assert "3 steps with batch_size 1" not in said["text"]
    told = "2 GPUs: each step trains 6 batches, 3 a GPU; the same as gradient_accumulation 6 on one GPU"
    assert (told in said["text"]) is not light
    assert failures(check(host, changed(prompt, "high_train", device="all"), light=light)) == {}


def has_looked(host):
    """Whether a node that encodes has looked whether its training can be run, since the events were cleared."""
    return any(b"looking whether" in event.data.get("bytes", b"") for event in list(host.events))


def test_what_no_training_could_use_is_not_encoded(host):
    """Each refusal of Check comes before the first clip or caption is encoded; what is encoded already costs nothing."""
    fresh = {"width": 80, "height": 48, "trigger_word": "nvr"}
    prompt = one_stage(lora_name="in_vain", steps=1, dataset=fresh)
    wrong = changed(prompt, "high_dit", model_name="wan_mini_low_noise.safetensors")
    cache = host.base / "output" / "wan_train" / "cache"
    kept = set(cache.rglob("*.safetensors"))
    host.events.clear()
    node_id, message, _ = failure(host, wrong)
    assert node_id in ("latents", "text")
    why = "nothing is encoded, since the training that follows can't be run. TrainLoRAStage (node high_train): "
    assert message.startswith(why)
    assert "low noise expert by its name" in message
    (told,) = [event.data for event in host.events if event.type == "wan_train.refused"]
    assert told == {"node_id": "high_train", "text": message.removeprefix(why)}
    assert set(cache.rglob("*.safetensors")) == kept

    (cache / "card-cpu.json").unlink(missing_ok=True)  # so that the device is measured within the node
    host.events.clear()
    assert succeeded(host.run(changed(prompt, "high_dit", budget_gb=0.01)))  # which the run tries on a CPU
    assert has_looked(host)
    assert "could not be checked" not in host.log_text()
    assert set(cache.rglob("*.safetensors")) > kept


def test_for_a_new_sample_prompt_alone_nothing_is_looked_at_since_the_training_may_be_finished(host):
    prompt = one_stage(lora_name="done", steps=1)
    assert succeeded(host.run(prompt))
    host.events.clear()
    assert succeeded(host.run(changed(prompt, "text", sample_prompts="shp that nobody asked for")))
    assert not has_looked(host)


def test_values_over_a_wire_and_joined_datasets_are_followed(host):
    prompt = one_stage(lora_name="asked")
    prompt["number"] = node("PrimitiveInt", value=30)
    prompt["second"] = {**prompt["data"]}
    prompt["joined"] = node("JoinDatasets", **{"datasets.dataset_0": ["data", 0], "datasets.dataset_1": ["second", 0]})
    prompt = changed(prompt, "high_train", steps=["number", 0])
    for cache in ("latents", "text"):
        prompt = changed(prompt, cache, dataset=["joined", 0])
    found = check(host, prompt)
    assert failures(found) == {}
    assert "6 steps with batch_size 1; 30 steps are 5 epochs" in found["high_train"]["text"]


def test_what_is_no_workflow_with_a_training_is_refused_in_a_sentence(host):
    assert post(host, b"{", "application/json")[0] == 400
    assert post(host, {"graph": {}})[0] == 400
    assert post(host, {"prompt": {}}, "text/plain")[0] == 415
    for prompt in ({}, None, [], {"1": 3}, {"1": node("KSampler")}):
        status, body = post(host, {"prompt": prompt})
        assert status == 422
        assert "has no training" in body["error"]


def test_circles_and_other_nonsense_end_in_a_sentence(host):
    prompt = one_stage(lora_name="asked")
    prompt["joined"] = node("JoinDatasets", **{"datasets.dataset_0": ["joined", 0]})
    for cache in ("latents", "text"):
        prompt = changed(prompt, cache, dataset=["joined", 0])
    assert "circle" in failures(check(host, prompt))["joined"]
    assert failures(check(host, changed(one_stage(), "high_train", stage="both")))["high_train"]


def test_what_is_told_without_being_asked_opens_and_measures_nothing(host):
    prompt = one_stage(lora_name="glanced", steps=6)
    check(host, prompt)  # its files are known from now on
    found = check(host, changed(prompt, "high_train", steps=9), light=True)
    assert failures(found) == {}
    said = found["high_train"]["text"]
    assert "9 steps are 3 epochs" in said
    assert "memory and time: press Check" in said
    assert "on the CPU: " not in said
    assert "buckets: 64x64x1 (1), 64x64x9 (2)" in found["data"]["text"]
    assert "width is 8" in failures(check(host, changed(prompt, "data", width=8), light=True))["data"]
    clip = host.base / "input" / "fresh" / "new.png"
    clip.parent.mkdir()
    shutil.copy(next((host.base / "input" / "shapes").glob("*.png")), clip)
    fresh = changed(prompt, "data", folder="input/fresh", default_caption="x")
    assert set(check(host, fresh, light=True)) == {"high_dit"}  # of files that nobody has opened nothing is said
    assert "buckets: 64x64x1 (1)" in check(host, fresh)["data"]["text"]
    assert "buckets: 64x64x1 (1)" in check(host, fresh, light=True)["data"]["text"]


def test_what_is_yet_to_be_connected_is_no_failure_that_nobody_asked_for(host):
    prompt = one_stage(lora_name="half")
    del prompt["high_train"]["inputs"]["text"]
    assert "text has no wire" in failures(check(host, prompt))["high_train"]
    assert failures(check(host, prompt, light=True)) == {}
    assert check(host, {"vae": prompt["vae"]}, light=True) == {}


def test_a_check_that_nobody_waits_for_any_more_ends(comfy):
    """The page ends its request when inputs change; the folder of a training that was not looked at yet is left alone."""
    from wan_train.nodes.check_graph import check as tell

    both = two_stages(lora_name="left")
    assert tell(both, light=True, is_gone=lambda: True) == {}
    asked = []
    tell(both, light=True, is_gone=lambda: asked.append("") or len(asked) > 1)
    assert len(asked) == 2  # before each of the two trainings


def test_a_request_that_is_broken_off_leaves_the_route_free(host):
    """Two threads answer: were those that nobody waits for kept busy, the next check would wait for them."""
    body = json.dumps({"prompt": two_stages(lora_name="broken_off"), "light": True}).encode()
    for _ in range(4):
        connection = http.client.HTTPConnection(host.url.removeprefix("http://"), timeout=60)
        connection.request("POST", "/wan_train/check", body, {"Content-Type": "application/json"})
        connection.close()
    assert failures(check(host, two_stages(lora_name="asked_for", steps=6), light=True)) == {}
