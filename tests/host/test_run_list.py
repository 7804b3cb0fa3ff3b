"""The list of all runs on the real host: what it tells, what it refuses to strangers, and deletion."""

import io
import json
import os
import re
import shutil

import pytest
from PIL import Image
from wan_train.tests.host.graphs import one_stage
from wan_train.tests.host.runs import run_folders, succeeded, until
from wan_train.tests.host.test_asks import LONG, begin
from wan_train.tests.host.test_look import get, post, refused
from wan_train.tests.host.test_routes import ODD_NAMES

GRAPH = {"nodes": [{"id": 9, "type": "TrainLoRAStage", "properties": {"wan_node": "a-token"}}]}


def train(host, prompt, extra=None):
    """The folder of a run that is trained to its end."""
    before = run_folders(host)
    assert succeeded(host.wait(host.queue(prompt, extra)))
    (folder,) = run_folders(host) - before
    return folder


@pytest.fixture(scope="module")
def folder(host):
    prompt = one_stage(lora_name="listed", seed=91, steps=3, validate_every=2, dataset={"held_out": 1})
    prompt["9"] = prompt.pop("high_train")
    return train(host, prompt, {"extra_pnginfo": {"workflow": GRAPH}})


def listed(host, folder):
    runs = host.server.request("/wan_train/runs")["runs"]
    return next((run for run in runs if run["run"] == folder.name), None)


def test_a_run_is_listed_with_what_it_did(host, folder):
    run = listed(host, folder)
    assert (run["name"], run["stage"], run["state"], run["step"], run["steps"]) == ("listed", "high", "finished", 3, 3)
    assert run["held_out"] > 0
    assert run["seconds_per_step"] > 0
    assert run["size"] == sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
    assert run["can_resume"]
    assert str(host.base) not in json.dumps(run)


def test_its_workflow_its_place_and_its_picture_are_given(host, folder):
    told = host.server.request(f"/wan_train/runs/{folder.name}/workflow")
    assert (told["name"], told["stage"]) == ("listed", "high noise")
    (node,) = told["workflow"]["nodes"]
    assert node["properties"] == {"wan_node": "a-token", "wan_run": folder.name}
    about = host.server.request(f"/wan_train/runs/{folder.name}/about")
    assert about["path"] == str(folder)  # to this machine alone: the host listens to no other
    assert re.match(r"1 checkpoint, the LoRA listed_high.*\.safetensors, its settings", about["holds"]), about
    assert not about["in_use"]
    settings = dict(about["settings"])
    assert (settings["stage"], settings["steps"], settings["validate_every"]) == ("high", "3", "2")
    assert settings["held out"] == "1 sample"
    assert str(host.base) not in json.dumps(about["settings"])
    status, picture = get(host, f"/wan_train/runs/{folder.name}/picture")
    assert status == 200
    assert Image.open(io.BytesIO(picture)).size == (8, 8)  # a pixel for each place of the latents


def test_a_run_that_names_a_file_elsewhere_gives_no_picture(host, folder):
    job = folder / "job.json"
    text = job.read_text()
    values = json.loads(text)
    del values["sha256"]
    path = values["data"]["samples"][0]["latents_path"]
    secret = host.base / "secret.safetensors"
    secret.write_bytes(open(path, "rb").read())  # noqa: PTH123, SIM115
    try:
        job.write_text(json.dumps(values))
        assert get(host, f"/wan_train/runs/{folder.name}/picture")[0] == 200
        values["data"]["samples"][0]["latents_path"] = str(secret)
        job.write_text(json.dumps(values))
        refused(host, get(host, f"/wan_train/runs/{folder.name}/picture"), 404)
    finally:
        job.write_text(text)


def test_the_workflow_of_an_older_run_of_a_node_shows_that_run(host, folder):
    newer = folder.with_name("newer_high_0123456789abcdef")
    newer.mkdir()
    (newer / "job.json").write_bytes((folder / "job.json").read_bytes())
    (newer / "page.json").write_text(json.dumps({"shown": {"a-token": 4e9}}))
    try:
        (node,) = host.server.request(f"/wan_train/runs/{folder.name}/workflow")["workflow"]["nodes"]
    finally:
        shutil.rmtree(newer)
    assert node["properties"] == {"wan_run": folder.name}


@pytest.mark.parametrize("name", ODD_NAMES, ids=lambda name: name[:20])
def test_odd_names_are_not_found_and_nothing_is_deleted(host, folder, name):
    before = run_folders(host)
    for what in ("about", "workflow", "picture"):
        refused(host, get(host, f"/wan_train/runs/{name}/{what}"), 404)
    refused(host, get(host, f"/wan_train/compare?one={name}&other={folder.name}"), 404)
    refused(host, post(host, f"/wan_train/runs/{name}/delete", {}), 404)
    assert run_folders(host) == before


def test_pages_of_others_can_change_nothing(host, folder):
    path = f"/wan_train/runs/{folder.name}/delete"
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):  # what a page of another site can send
        refused(host, post(host, path, b"{}", kind), 415)
    stranger = {"Host": "evil.example", "Origin": "http://evil.example"}
    assert "WANTRAIN_HOSTS" in refused(host, post(host, path, {}, **stranger), 403)
    own = {"Origin": host.url}
    asking = f"/wan_train/runs/{folder.name}/ask/stop"
    refused(host, post(host, asking, b"", "text/plain", **own), 415)
    assert "not being trained here" in refused(host, post(host, asking, {}, **own), 404)
    assert folder.is_dir()


def test_two_runs_are_compared(host, folder):
    other = folder.with_name("of_the_list_compared_high_0123456789abcdef")
    other.mkdir()
    values = json.loads((folder / "job.json").read_text())
    del values["sha256"]
    values["name"], values["adapter"]["rank"] = "compared", 8
    (other / "job.json").write_text(json.dumps(values))
    found = host.server.request(f"/wan_train/compare?one={folder.name}&other={other.name}")["differences"]
    assert found == [{"name": "rank", "one": "4", "other": "8"}]
    sentence = refused(host, get(host, f"/wan_train/runs/{other.name}/workflow"), 404)
    assert "started from the command line, or by a program" in sentence


def test_a_run_that_goes_on_is_told_and_is_not_deleted_until_it_has_stopped(host):
    prompt = one_stage(lora_name="going", seed=92, **LONG)
    prompt_id, folder = begin(host, prompt)
    run = listed(host, folder)
    assert run["state"] == "training"
    assert "stop" in run["asks"]
    assert re.search(r"left$", run["facts"][0])

    def is_told():
        lines = [e.data["bytes"].decode(errors="replace") for e in list(host.events) if e.data.get("kind") == "text"]
        return any(re.search(r"going: step \d+ of 100000, .* left", line) for line in lines)

    until(is_told, "a line of how far it is")
    sentence = refused(host, post(host, f"/wan_train/runs/{folder.name}/delete", {}), 409)
    assert "is being trained at the moment: stop it first" in sentence
    assert post(host, f"/wan_train/runs/{folder.name}/ask/stop", {})[0] == 200
    host.wait(prompt_id)
    run = listed(host, folder)
    assert run["state"] == "stopped"
    assert 0 < run["step"] < LONG["steps"]
    assert post(host, f"/wan_train/runs/{folder.name}/delete", {}) == (200, b"{}")
    assert listed(host, folder) is None
    assert not folder.exists()
    assert [path for path in folder.parent.glob(".*") if path.name != ".placing.lock"] == []


@pytest.mark.skipif(os.name == "nt", reason="links need a right there")
def test_a_linked_run_is_not_deleted(host, folder, tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "job.json").write_bytes((folder / "job.json").read_bytes())
    link = folder.with_name("linked_run")
    link.symlink_to(tmp_path / "far")
    try:
        assert "is a link" in refused(host, post(host, "/wan_train/runs/linked_run/delete", {}), 409)
    finally:
        link.unlink()
    assert (tmp_path / "far" / "job.json").is_file()


def test_the_phones_page_stands_alone(host):
    status, page = get(host, "/wan_train/watch")
    assert status == 200
    assert b"/*script*/" not in page
    assert not re.findall(rb"""(?:src|href)=["']?(?:https?:)?//""", page)
    assert b"import " not in re.sub(rb"//[^\n]*", b"", page)
    stranger = {"Host": "evil.example", "Origin": "http://evil.example"}
    refused(host, get(host, "/wan_train/watch", **stranger), 403)


def test_pages_that_stand_alone_get_their_words(host):
    assert host.server.request("/wan_train/words/de")["Stop"] == "Stop"
    assert host.server.request("/wan_train/words/de")["Search"] == "Suchen"
    assert host.server.request("/wan_train/words/zh-TW")["Search"] == "搜尋"
    for none in ("en", "xx", "..%2F..", "de%2F..%2Ffr", "nodeDefs.json"):
        assert get(host, f"/wan_train/words/{none}") == (200, b"{}"), none
