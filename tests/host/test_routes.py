"""What the routes answer: to odd names and headers, and about a diary of a hundred thousand lines."""

import asyncio
import json
import shutil
import urllib.error
import urllib.parse
import urllib.request

import pytest
from wan_train.core.train.events import read_history
from wan_train.core.train.history import MAX_POINTS
from wan_train.tests.host.graphs import one_stage
from wan_train.tests.host.runs import run_folders, succeeded


@pytest.fixture(scope="module")
def folder(host):
    """A finished run's folder."""
    before = run_folders(host)
    assert succeeded(host.run(one_stage(lora_name="routed", seed=41, steps=1)))
    return next(iter(run_folders(host) - before))


def ask(host, path, **headers):
    """(status, headers, body) of a request."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(host.url + path, headers=headers), timeout=60) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def refused(host, path, **headers):
    """(status, sentence) of a refusal, which tells nothing of this machine."""
    status, _, body = ask(host, path, **headers)
    sentence = json.loads(body)["error"]
    assert "Traceback" not in sentence
    assert str(host.base) not in sentence
    return status, sentence


ODD_NAMES = [
    "x" * 5000, "x" * 256, "%2e%2e", "..%2f..%2fmodels", "%2e%2e%5cmodels", "a%00b", "%00", "%ff%fe", "%F0%9F%92%A9" * 40,
    "%E2%80%AE", "%0d%0aSet-Cookie:x", "...", "%20", "CON", "NUL.txt", "~", "%25%32%65", "%ED%A0%80",
]  # fmt: skip


@pytest.mark.parametrize("name", ODD_NAMES, ids=lambda name: name[:20])
def test_odd_names_are_not_found(host, folder, name):
    assert refused(host, f"/wan_train/runs/{name}")[0] == 404
    assert refused(host, f"/wan_train/runs/{name}/previews/step-00000001.webp")[0] == 404
    assert refused(host, f"/wan_train/runs/{folder.name}/previews/{name}")[0] == 404


def test_a_run_named_in_any_script_is_found(host):
    before = run_folders(host)
    assert succeeded(host.run(one_stage(lora_name="हिन्दी", seed=42, steps=1)))
    (folder,) = run_folders(host) - before
    status, _, body = ask(host, f"/wan_train/runs/{urllib.parse.quote(folder.name)}")
    assert (status, json.loads(body)["run"]) == (200, folder.name)


@pytest.mark.parametrize("kind", ["evil.example", "evil.example:8188", "localhost.evil.example", "a b"])
def test_another_hosts_name_is_refused(host, folder, kind):
    """The host itself lets such requests pass: their Host and Origin are alike."""
    for path in (
        f"/wan_train/runs/{folder.name}",
        "/wan_train/presets",
        "/wan_train/runs/x/previews/step-00000001.webp",
    ):
        status, sentence = refused(host, path, Host=kind, Origin=f"http://{kind}")
        assert (status, "WANTRAIN_HOSTS" in sentence) == (403, True)


@pytest.mark.parametrize(
    "kind", ["localhost", "localhost:8188", "LOCALHOST.", "x.localhost:1", "127.0.0.1", "[::1]:80", "10.0.0.5"]
)
def test_addresses_and_localhost_are_answered(host, kind):
    assert ask(host, "/wan_train/presets", Host=kind)[0] == 200


def test_models_are_told_by_their_files_and_else_by_their_names(host):
    names = ("wan_mini_high_noise.safetensors", "wan2.1_t2v_1.3B_absent.safetensors", "../mine.safetensors")
    query = "&".join(f"name={name}" for name in names)
    found = json.loads(ask(host, f"/wan_train/families?{query}")[2])
    assert found == {names[0]: {"other": ""}, names[1]: {"t2v-1.3b": "Wan 2.1 T2V 1.3B"}, names[2]: {}}
    assert json.loads(ask(host, "/wan_train/families")[2]) == {}


def test_every_recipe_says_which_model_it_is_for(host):
    presets = {one["name"]: one for one in json.loads(ask(host, "/wan_train/presets")[2])}
    assert presets["effect-24gb"]["model"] == "Wan 2.2 I2V A14B"
    assert presets["simpletuner-quickstart"]["family"] == "t2v-1.3b"
    assert all(one["model"] for one in presets.values())


def test_a_job_that_cannot_be_read_is_a_sentence(host, folder):
    text = (folder / "job.json").read_text()
    try:
        (folder / "job.json").write_text("{")
        status, sentence = refused(host, f"/wan_train/runs/{folder.name}")
    finally:
        (folder / "job.json").write_text(text)
    assert status == 422
    assert "job.json" in sentence


def test_a_preview_that_is_a_link_is_not_given_out(host, folder, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (folder / "previews").mkdir(exist_ok=True)
    link = folder / "previews" / "step-00000001.webp"
    try:
        link.symlink_to(tmp_path / "secret")
    except OSError:
        pytest.skip("links are not permitted here")
    try:
        assert refused(host, f"/wan_train/runs/{folder.name}/previews/{link.name}")[0] == 404
    finally:
        link.unlink()


def test_a_long_diary_is_thinned_and_the_server_answers_meanwhile(host, folder):
    long = folder.with_name("of_routes_long_high_0123456789abcdef")
    shutil.copytree(folder, long)
    peak = 33_333
    lines = [json.dumps({"event": "start", "time": 1.0, "step": 0})]
    for step in range(1, 100_001):
        loss = 50.0 if step == peak else 0.5 + 0.001 * (step % 13)
        lines.append(json.dumps({"event": "step", "time": 1.0 + step, "step": step, "loss": loss, "lr": 1e-3}))
    (long / "events.jsonl").write_text("\n".join(lines) + "\n")

    async def ask_twice():
        running = asyncio.create_task(asyncio.to_thread(ask, host, f"/wan_train/runs/{long.name}"))
        meanwhile = 0
        while not running.done():
            assert (await asyncio.to_thread(ask, host, "/wan_train/presets"))[0] == 200
            meanwhile += not running.done()
        return await running, meanwhile

    (status, _, body), meanwhile = asyncio.run(ask_twice())
    answer = json.loads(body)
    assert status == 200
    assert meanwhile > 0  # answered before the diary was read
    assert len(answer["losses"]) <= MAX_POINTS
    assert [step for step, _ in answer["smoothed"]] == [step for step, _ in answer["losses"]]
    losses = dict(map(tuple, answer["losses"]))
    assert {1, peak, 100_000} <= set(losses)
    assert losses == {step: loss for step, loss in read_history(long / "events.jsonl").losses.items() if step in losses}
    assert json.loads(ask(host, f"/wan_train/runs/{long.name}")[2]) == answer


def test_curves_of_runs_and_what_differs(host, folder):
    other = folder.with_name("of_routes_charted_high_0123456789abcdef")
    shutil.copytree(folder, other)
    job = json.loads((other / "job.json").read_text())
    del job["sha256"]
    job["adapter"]["rank"] = 99
    (other / "job.json").write_text(json.dumps(job))
    path = f"/wan_train/curves?run={folder.name}&run={other.name}&run=gone&of=loss&of=sigma&of=gradient_norm&window=4"
    status, _, body = ask(host, path)
    answer = json.loads(body)
    assert status == 200
    assert [run["run"] for run in answer["runs"]] == [folder.name, other.name]
    series = answer["runs"][0]["series"]
    ((step, loss),) = series["loss"]["points"]
    assert step == 1
    assert [point for group in series["sigma"] for point in group["points"]] == [[1, pytest.approx(loss)]]
    assert series["gradient_norm"]["points"][0][1] > 0
    assert answer["differences"] == [{"name": "rank", "values": ["4", "99"]}]
    others = json.loads(ask(host, f"/wan_train/runs/{folder.name}/others")[2])
    assert other.name in [one["run"] for one in others]
    assert folder.name not in [one["run"] for one in others]


def test_a_run_that_was_made_longer_is_not_called_finished(host, folder):
    longer = folder.with_name("of_routes_longer_high_0123456789abcdef")
    shutil.copytree(folder, longer)
    job = json.loads((longer / "job.json").read_text())
    del job["sha256"]
    job["loop"]["steps"] = 5
    (longer / "job.json").write_text(json.dumps(job))
    answer = json.loads(ask(host, f"/wan_train/runs/{longer.name}")[2])
    assert (answer["state"], answer["steps"]) == ("stopped", 5)
    assert answer["notes"].startswith("stopped at step 1 of 5: press Run to go on")
    assert json.loads(ask(host, f"/wan_train/runs/{folder.name}")[2])["state"] == "finished"


@pytest.mark.parametrize("query", ["from=x", "to=-1", "window=0", "window=inf", "from=1e400", "of=secrets"])
def test_questions_for_curves_that_make_no_sense_are_refused(host, folder, query):
    status, sentence = refused(host, f"/wan_train/curves?run={folder.name}&{query}")
    assert status == 400
    assert query.split("=")[0] in sentence or "series" in sentence


@pytest.mark.parametrize("name", ["..%2f..%2fmodels", "gone", ""])
def test_curves_of_no_run_are_not_found(host, folder, name):
    for path in (f"curves?run={name}", f"runs/{name or 'x'}/others", f"runs/{name or 'x'}/curve.csv"):
        assert refused(host, f"/wan_train/{path}")[0] == 404


def test_the_table_is_a_download(host, folder):
    status, headers, body = ask(host, f"/wan_train/runs/{folder.name}/curve.csv")
    assert (status, headers["Content-Type"]) == (200, "text/csv; charset=utf-8")
    assert headers["Content-Disposition"] == f'attachment; filename="{folder.name}.csv"'
    head, line = body.decode().splitlines()
    assert head.startswith("step,loss,held_out_loss,learning_rate,gradient_norm,loss_at_sigma_0.875_to_0.9,")
    assert line.startswith("1,")
    assert len(line.split(",")) == len(head.split(","))


def test_names_of_this_server(comfy, monkeypatch):
    from wan_train.nodes.routes import HOSTS_VARIABLE, is_own_name

    monkeypatch.delenv(HOSTS_VARIABLE, raising=False)
    assert not is_own_name("box.example:8188", True)
    assert is_own_name("box.example:8188", False)  # it listens to others, and is known to them by names of its own
    assert is_own_name("", True)
    assert not is_own_name("[::1", True)
    monkeypatch.setenv(HOSTS_VARIABLE, "other.example, Box.example")
    assert is_own_name("box.example:8188", True)
    assert not is_own_name("evil.example", True)
    monkeypatch.setenv(HOSTS_VARIABLE, "*")
    assert is_own_name("evil.example", True)
