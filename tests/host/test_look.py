"""The Look page in a real ComfyUI: what its routes answer and refuse, and edits made in Chromium that are then trained."""

import asyncio
import json
import shutil
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from wan_train.core.data.points import Points, points_path, read_points
from wan_train.core.data.scan import scan_folder
from wan_train.core.settings.dataset import DatasetOptions
from wan_train.tests.core.look.material import write_mixed
from wan_train.tools.screenshot import APP, BROWSERS, open_browser

SETTINGS = {"width": 192, "height": 192, "num_frames": 17, "trigger_word": "ohwx"}
PACK = Path(__file__).resolve().parents[2]
WORKFLOW = json.loads((PACK / "example_workflows" / "demo.json").read_text(encoding="utf-8"))
needs_browser = pytest.mark.skipif(not any(map(shutil.which, BROWSERS)), reason="no Chromium is installed")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return write_mixed(tmp_path_factory.mktemp("drawn") / "mixed")


@pytest.fixture
def mixed(host, drawn):
    """24 files in the input folder, put there anew for each test, which may change them."""
    folder = host.base / "input" / "mixed"
    shutil.rmtree(folder, ignore_errors=True)
    return shutil.copytree(drawn, folder, copy_function=shutil.copyfile)


def post(host, path, body, kind="application/json", **headers):
    """(status, body) of a POST; `body` as JSON unless it is bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(host.url + path, data=data, headers={"Content-Type": kind, **headers})
    return _answer(request)


def get(host, path, **headers):
    return _answer(urllib.request.Request(host.url + path, headers=headers))


def _answer(request):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=120) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def look(host, folder="input/mixed", **settings):
    """All events of a look, as the page reads them."""
    status, body = post(host, "/wan_train/look/dataset", {"folder": folder, "settings": {**SETTINGS, **settings}})
    assert status == 200
    return [json.loads(line) for line in body.splitlines()]


def refused(host, answer, status):
    """The sentence of a refusal, which tells nothing of this machine."""
    assert answer[0] == status, answer
    sentence = json.loads(answer[1])["error"]
    assert str(host.base) not in sentence
    return sentence


def scanned(folder):
    return scan_folder(folder, DatasetOptions(**SETTINGS))


def test_everything_is_told_and_pictures_are_given_out(host, mixed):
    events = look(host)
    kinds = [event["event"] for event in events]
    assert kinds[0] == "scan"
    assert kinds[-2:] == ["duplicates", "done"]
    dataset = next(event for event in events if event["event"] == "dataset")
    assert len(dataset["samples"]) == 23
    assert dataset["locked"] == ""
    seen = {item["i"]: item for event in events if event["event"] == "seen" for item in event["items"]}
    assert len(seen) == 23
    status, strip = get(host, f"/wan_train/look/strips/{seen[0]['key']}.webp")
    assert (status, strip[:4], strip[8:12]) == (200, b"RIFF", b"WEBP")
    assert get(host, f"/wan_train/look/{dataset['look']}/frames/0/3")[1][8:12] == b"WEBP"
    assert get(host, f"/wan_train/look/{dataset['look']}/source/0/0")[1][8:12] == b"WEBP"
    again = [event["event"] for event in look(host) if event["event"] != "scan"]
    assert again == ["dataset", "seen", "duplicates", "done"]  # nothing is made a second time


def test_other_widgets_of_the_node_are_no_settings(host, mixed):
    assert look(host, some_widget_of_another_pack=1, drop_captions=-1)[-1]["event"] == "done"  # -1 is auto there


@pytest.mark.parametrize(
    ("folder", "settings", "says"),
    [
        ("input/../models", {}, "leads outside"),
        ("input/nothing", {}, "was not found"),
        ("/etc", {}, "was not found"),
        (7, {}, "must be a dataset folder's name"),
        ("input/mixed", {"width": 17}, "multiple"),
        ("input/mixed", {"width": "wide"}, "width"),
        ("input/mixed", {"drop_captions": [1]}, "drop_captions"),
        ("input/mixed", {"caption_extension": "t/x"}, "caption"),
    ],
)
def test_what_can_not_be_shown_is_a_sentence(host, mixed, folder, settings, says):
    (event,) = [event for event in look(host, folder, **settings) if event["event"] != "scan"]
    assert event["event"] == "error"
    assert says in event["text"]
    assert str(host.base) not in event["text"].replace(f"input ({host.base}", "")


def test_requests_that_are_none_are_refused(host, mixed):
    path = "/wan_train/look/dataset"
    assert "JSON" in refused(host, post(host, path, {}, kind="text/plain"), 415)
    refused(host, post(host, path, b"[1]"), 400)
    refused(host, post(host, path, b"{" * 100_000), 400)
    refused(host, post(host, path, b" " * 3_000_000), 413)
    assert "WANTRAIN_HOSTS" in refused(host, post(host, path, {}, Host="evil.example"), 403)
    for name in ("x", "0" * 32, "..%2f..%2fsecret", "0" * 31 + "g", "%2e%2e"):
        assert get(host, f"/wan_train/look/strips/{name}.webp")[0] == 404
    for path in ("x/frames/0/0", "x/source/0/0"):
        assert "load this page again" in refused(host, get(host, f"/wan_train/look/{path}"), 422)
    name = next(event for event in look(host) if event["event"] == "dataset")["look"]
    for path in ("frames/99/0", "frames/0/99", "frames/-1/0", "source/0/9999999999999", "source/0/x"):
        refused(host, get(host, f"/wan_train/look/{name}/{path}"), 422)


def test_a_strip_that_is_a_link_is_not_given_out(host, mixed, tmp_path):
    look(host)
    (tmp_path / "secret").write_text("secret")
    link = host.base / "output" / "wan_train" / "cache" / "look" / f"{'a' * 32}.webp"
    link.symlink_to(tmp_path / "secret")
    try:
        assert get(host, f"/wan_train/look/strips/{link.name}")[0] == 404
    finally:
        link.unlink()


def edit(host, number, text, state, dataset):
    return post(
        host, "/wan_train/look/caption", {"look": dataset["look"], "sample": number, "text": text, "state": state}
    )


def test_edits_are_kept_and_bad_ones_refused(host, mixed):
    dataset = next(event for event in look(host) if event["event"] == "dataset")
    sample = dataset["samples"][0]
    state = sample["written"]["state"]
    assert sample["name"] == "a_cut.mp4"
    assert edit(host, 0, "ohwx anew", state, dataset)[0] == 200
    assert scanned(mixed).samples[0].file.caption == "ohwx anew"
    assert "meanwhile" in refused(host, edit(host, 0, "again", state, dataset), 422)
    for number, text in ((99, "x"), ("0", "x"), (True, "x"), (0, 7), (0, None)):
        refused(host, edit(host, number, text, state, dataset), 422)
    assert scanned(mixed).samples[0].file.caption == "ohwx anew"

    def mark(number, points):
        return post(host, "/wan_train/look/points", {"look": dataset["look"], "sample": number, "points": points})

    assert mark(0, [0, 9])[0] == 200
    assert read_points(points_path(mixed / "a_cut.mp4")) == Points(in_frame=0, out_frame=9)
    assert scanned(mixed).samples[0].frame_indices == tuple(range(9))
    picture = next(i for i, s in enumerate(dataset["samples"]) if s["kind"] == "image")
    for number, points in ((0, [0, 18]), (0, [5, 5]), (0, [1]), (0, "ab"), (0, [0.5, 3]), (picture, [0, 1])):
        refused(host, mark(number, points), 422)
    assert mark(0, None)[0] == 200
    assert not points_path(mixed / "a_cut.mp4").exists()


def test_files_that_came_with_the_pack_are_not_changed(host):
    dataset = next(event for event in look(host, "nano/dive") if event["event"] == "dataset")
    assert "came with the pack" in dataset["locked"]
    state = dataset["samples"][0]["written"]["state"]
    assert "came with the pack" in refused(host, edit(host, 0, "x", state, dataset), 422)


def test_a_caption_that_is_a_link_to_elsewhere_is_neither_read_nor_written(host, mixed, tmp_path):
    (tmp_path / "secret.txt").write_text("secret words")
    (mixed / "ok_01.txt").unlink()
    (mixed / "ok_01.txt").symlink_to(tmp_path / "secret.txt")
    events = look(host)
    assert "secret words" not in json.dumps(events)
    dataset = next(event for event in events if event["event"] == "dataset")
    number = next(i for i, sample in enumerate(dataset["samples"]) if sample["name"] == "ok_01.mp4")
    state = dataset["samples"][number]["written"]["state"]
    refused(host, edit(host, number, "x", state, dataset), 422)
    assert (tmp_path / "secret.txt").read_text() == "secret words"


CARD = "[...document.querySelectorAll('.card')].find((card) => card.textContent.includes('{name}'))"


async def press_look(url):
    """Load a workflow and press the node's button; where it leads."""
    async with open_browser() as page:
        await page.open(url)
        await page.load(WORKFLOW, "demo")
        return await page.run(f"""
        const node = ({APP}).rootGraph.nodes.find((node) => node.type === "DatasetFromFolder");
        const set = (name, value) => {{ node.widgets.find((widget) => widget.name === name).value = value; }};
        set("folder", "input/mixed");
        for (const [name, value] of Object.entries({json.dumps(SETTINGS)})) set(name, value);
        let address;
        window.open = (url) => {{ address = url; return null; }};
        node.widgets.find((widget) => widget.name === "look").callback();
        return new URL(address, location.href).href;
        """)


async def show(page, address):
    """Open the page and wait until all is there."""
    await page.send("Page.navigate", url=address)
    await page.wait_for("document.querySelectorAll('.card').length === 23")
    await page.wait_for("document.getElementById('progress').hidden")
    await page.wait_for(
        "[...document.querySelectorAll('#kinds button')].some((kind) => kind.textContent === 'near duplicate (2)')"
    )


@pytest.mark.grid(5, "the page")
@needs_browser
def test_a_caption_and_a_part_that_are_chosen_on_the_page_are_trained(host, mixed):
    async def act():
        address = await press_look(host.url)
        assert "/wan_train/look#" in address
        async with open_browser(1400, 1000) as page:
            await show(page, address)
            about = await page.run("return document.getElementById('about').textContent")
            chips = await page.run("return [...document.querySelectorAll('#kinds button')].map((b) => b.textContent)")
            card = CARD.format(name="a_cut.mp4")
            await page.run(f"{card}.click()")
            await page.wait_for("document.getElementById('detail').open")
            await page.wait_for("document.querySelector('#source .picture').style.backgroundImage !== ''")
            await page.run("""
                document.getElementById('caption').value = 'ohwx a caption </script> typed & kept';
                document.getElementById('save-caption').click();
            """)
            await page.wait_for("document.getElementById('trained').textContent.includes('typed & kept')")
            await page.run("""
                const slider = document.getElementById('source-frame');
                slider.value = 8; slider.dispatchEvent(new Event('input'));
                document.getElementById('set-out').click();
                document.getElementById('save-points').click();
            """)
            await page.wait_for("document.getElementById('detail-name').textContent === 'a_cut.mp4[0:9]'")
            await page.wait_for("document.getElementById('progress').hidden")
            await page.wait_for("document.getElementById('detail-badges').textContent === ''")
            badges = await page.run("return document.getElementById('detail-badges').textContent")
            await page.picture(host.base / "look.png")
            return about, chips, badges, page.log

    about, chips, badges, log = asyncio.run(act())
    assert "mixed: 22 samples an epoch" in about  # one is held out
    assert "near duplicate (2)" in chips
    assert "cut (1)" in chips
    assert badges == ""  # the cut is outside of the part now
    assert [
        line for line in log if "wan_train" in line or "Content Security" in line or line.startswith("uncaught")
    ] == []
    sample = scanned(mixed).samples[0]
    assert sample.file.caption == "ohwx a caption </script> typed & kept"
    assert sample.frame_indices == tuple(range(9))


@pytest.mark.grid(5, "the page")
@needs_browser
def test_keys_go_through_frames_and_samples(host, mixed):
    async def press(page, key, target="document.activeElement"):
        await page.run(
            f"{target}.dispatchEvent(new KeyboardEvent('keydown', {{key: {json.dumps(key)}, bubbles: true, cancelable: true}}))"
        )

    async def act():
        async with open_browser(1400, 1000) as page:
            asked = json.dumps({"folder": "input/mixed", "settings": SETTINGS})
            await show(page, f"{host.url}/wan_train/look#{urllib.parse.quote(asked)}")
            await page.run(f"{CARD.format(name='ok_02.mp4')}.click()")
            await page.wait_for("document.getElementById('detail').open")
            dialog = "document.getElementById('detail')"
            state = (
                "return [document.getElementById('frame').value, document.getElementById('detail-play').textContent]"
            )
            await press(page, " ", dialog)
            await press(page, "ArrowRight", dialog)
            before = await page.run(state)
            await press(page, "ArrowLeft", dialog)
            after = await page.run(state)
            await page.wait_for("!document.querySelector('#stage img').hidden")
            width = await page.run("return document.querySelector('#stage img').naturalWidth")
            await press(page, "PageDown", dialog)
            name = await page.run("return document.getElementById('detail-name').textContent")
            return before, after, width, name

    before, after, width, name = asyncio.run(act())
    assert before[1] == after[1] == "Play"
    assert (int(before[0]) - int(after[0])) % 17 == 1
    assert width == 192  # the frame in the size that is trained
    assert name.startswith("ok_03")


@pytest.mark.grid(5, "the page")
@needs_browser
def test_what_was_chosen_is_chosen_after_a_reload(host, mixed):
    state = """return {
      latents: document.getElementById('latents').value, costs: document.getElementById('costs').open,
      search: document.getElementById('search').value, play: document.getElementById('play').textContent,
      shown: document.getElementById('shown').textContent,
      pressed: [...document.querySelectorAll('#kinds [aria-pressed=true]')].map((button) => button.textContent),
    };"""

    async def act():
        asked = json.dumps({"folder": "input/mixed", "settings": SETTINGS})
        address = f"{host.url}/wan_train/look#{urllib.parse.quote(asked)}"
        async with open_browser(1400, 1000) as page:
            await show(page, address)
            await page.run("""
                const change = (id, value, type) => {
                  document.getElementById(id).value = value;
                  document.getElementById(id).dispatchEvent(new Event(type));
                };
                change('latents', 'wan2.2', 'change');
                change('search', 'a', 'input');
                document.getElementById('costs').open = true;
                document.getElementById('play').click();
                [...document.querySelectorAll('#kinds button')].find((b) => b.textContent.startsWith('cut')).click();
            """)
            await page.wait_for("JSON.parse(localStorage.getItem('wan_train.look')).costs")
            before = await page.run(state)
            await page.send("Page.navigate", url="about:blank")
            await show(page, address)
            await page.wait_for("document.getElementById('shown').textContent.startsWith('1 ')")
            after = await page.run(state)
            await page.send("Page.navigate", url="about:blank")
            other = urllib.parse.quote(json.dumps({"folder": "input/shapes", "settings": SETTINGS}))
            await page.send("Page.navigate", url=f"{host.url}/wan_train/look#{other}")
            await page.wait_for("document.querySelectorAll('.card').length > 0")
            return before, after, await page.run(state)

    before, after, other = asyncio.run(act())
    assert before == after
    assert after["pressed"] == ["cut (1)"]
    assert (after["latents"], after["costs"], after["search"]) == ("wan2.2", True, "a")
    assert (other["latents"], other["search"], other["pressed"]) == ("wan2.2", "", [])
