"""What nodes have reported is kept by the server, for whoever opens their workflow later."""

import json
import os
import urllib.error
import urllib.request

import pytest
from wan_train.tests.host.graphs import data_graph, dit
from wan_train.tests.host.runs import succeeded
from wan_train.tools.layout import api_to_ui

DATA, LATENTS, MODEL, COPY = (f"{number:032x}" for number in range(1, 5))


def reports(host, *tokens):
    return host.server.request(f"/wan_train/reports?{'&'.join(f'token={token}' for token in tokens)}")


def post(host, body, kind="application/json"):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{host.url}/wan_train/reports", data, {"Content-Type": kind})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def queued(host, tokens, **dataset):
    """Run a workflow as the page queues it, whose nodes have tokens; its nodes by their keys, and its history.

    Its values are no other test's: what this ComfyUI has run before it would not run again.
    """
    prompt = {**data_graph(**dataset), "model": dit("wan_mini_high_noise.safetensors", ffn_pieces=3)}
    prompt["seen"] = {"class_type": "PreviewAny", "inputs": {"source": ["latents", 0]}, "_meta": {"title": ""}}
    prompt["told"] = {"class_type": "PreviewAny", "inputs": {"source": ["model", 0]}, "_meta": {"title": ""}}
    workflow = api_to_ui(prompt, host.object_info())
    ids = {key: str(number) for number, key in enumerate(prompt, 1)}
    nodes = {key: next(node for node in workflow["nodes"] if str(node["id"]) == ids[key]) for key in prompt}
    for key, token in tokens.items():
        nodes[key]["properties"]["wan_node"] = token
    sent = {
        ids[key]: {
            **node,
            "inputs": {
                name: [ids[value[0]], value[1]] if isinstance(value, list) else value
                for name, value in node["inputs"].items()
            },
        }
        for key, node in prompt.items()
    }
    entry = host.wait(host.queue(sent, {"extra_pnginfo": {"workflow": workflow}}))
    assert succeeded(entry)
    return nodes, {key: entry["outputs"].get(ids[key]) for key in prompt}


def test_a_report_is_kept_under_its_nodes_token_with_the_values_that_it_is_of(host):
    nodes, outputs = queued(host, {"data": DATA, "latents": LATENTS, "model": MODEL}, slide_stride=19)
    kept = reports(host, DATA, LATENTS, MODEL, COPY)
    assert set(kept) == {DATA, LATENTS, MODEL}
    for key, token in (("data", DATA), ("latents", LATENTS), ("model", MODEL)):
        assert kept[token] == {"text": outputs[key]["text"][0], "values": nodes[key]["widgets_values"]}
    assert kept[DATA]["text"].startswith("2 clips, 1 image: 3 samples an epoch")
    folder = host.base / "output" / "wan_train" / "reports"
    assert {path.stem for path in folder.glob("*.json")} >= {DATA, LATENTS, MODEL}  # so that it outlives the server


def test_the_page_hands_over_what_the_host_had_kept(host):
    given = {"token": COPY, "text": "3 samples", "values": [1, "a"]}
    assert post(host, given) == 200
    assert reports(host, COPY) == {COPY: {"text": "3 samples", "values": [1, "a"]}}
    assert post(host, given, "text/plain") == 415
    for wrong in (b"{", {}, {**given, "token": 3}, {**given, "text": 3}, {**given, "text": "x" * 200_000}):
        assert post(host, wrong) == 400
    before = set((host.base / "output").rglob("*"))
    assert post(host, {**given, "token": "../../outside-of-it-all"}) == 200
    assert set((host.base / "output").rglob("*")) == before
    assert reports(host, "..%2F..%2Freports%2Fsomething") == {}
    assert reports(host, COPY)[COPY]["text"] == "3 samples"


def test_only_so_many_are_kept_and_the_oldest_go(comfy, tmp_path, monkeypatch):
    from wan_train.nodes import report_file

    monkeypatch.setattr(report_file, "MAX_REPORTS", 3)
    tokens = [f"{number:032x}" for number in range(5)]
    for age, token in enumerate(tokens):
        report_file.keep_report(tmp_path, token, "told", [])
        os.utime(tmp_path / f"{token}.json", (age, age))
    assert set(report_file.read_reports(tmp_path, tokens)) == set(tokens[2:])
    report_file.keep_report(tmp_path, "f" * 32, "x" * report_file.MAX_BYTES, [])
    (tmp_path / f"{tokens[4]}.json").write_text("{")
    assert set(report_file.read_reports(tmp_path, [*tokens, "f" * 32])) == set(tokens[2:4])


@pytest.mark.parametrize(
    ("pieces", "workflow"),  # the pieces of each are others, so that the host runs the node each time
    enumerate([None, {}, {"nodes": 3}, {"nodes": [{"id": 1, "properties": {"wan_node": "../x"}}]}], 4),
)
def test_what_no_page_has_queued_is_not_kept(host, pieces, workflow):
    folder = host.base / "output" / "wan_train" / "reports"
    before = sorted(folder.glob("*"))
    prompt = {"1": dit("wan_mini_low_noise.safetensors", ffn_pieces=pieces)}
    prompt["2"] = {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}, "_meta": {"title": ""}}
    extra = {} if workflow is None else {"extra_pnginfo": {"workflow": workflow}}
    assert succeeded(host.wait(host.queue(prompt, extra)))
    assert sorted(folder.glob("*")) == before
