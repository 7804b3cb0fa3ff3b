"""Tabs of a real browser for the tests in this folder.

Each test runs in the renderer that it names; with --both-renderers (`run.py campaign page`) in both,
and those of whole trainings run then only.
"""

import contextlib
from importlib import metadata

import pytest
from wan_train.tests.chromium import find_chromium, leave

LONG_FORM = ("test_blueprint", "test_flows", "test_identity", "test_server_killed_often", "test_training")
RENDERERS = {"canvas": False, "vue": True}


def pytest_configure(config):
    config.addinivalue_line("markers", "renderer(name): of the short form, canvas or vue")


def pytest_generate_tests(metafunc):
    if "desk" in metafunc.fixturenames:
        mark = metafunc.definition.get_closest_marker("renderer")
        names = RENDERERS if metafunc.config.getoption("--both-renderers") or mark is None else mark.args
        metafunc.parametrize("desk", names, indirect=True, scope="module")


OLDEST = (1, 45)  # front end of which these tests know the buttons


@pytest.fixture(scope="module")
def browser():
    """Chromium. Without it, Playwright or a front end of these days the test is skipped; under CI it fails (chromium.py)."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        front_end = metadata.version("comfyui-frontend-package")
        if tuple(map(int, front_end.split(".")[:2])) < OLDEST:
            pytest.skip(f"ComfyUI's front end {front_end} has other buttons")
    program = find_chromium()
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        leave("Playwright is not installed: pip install playwright")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def host(host):
    """The shared ComfyUI, without the runs of other files."""
    from wan_train.tests.host.runs import encode_shapes, set_aside_runs

    set_aside_runs(host)
    encode_shapes(host)
    return host


@pytest.fixture(scope="module")
def _desks(browser, host):
    from wan_train.tests.browser.desk import Desk

    made: dict[str, Desk] = {}

    def of(name: str) -> Desk:
        for other in made.keys() - {name}:
            made.pop(other).close()
        if name not in made:
            made[name] = Desk(browser, host, modern=RENDERERS[name])
        return made[name]

    yield of
    for desk in made.values():
        desk.close()


@pytest.fixture(scope="module")
def desk(request, _desks):
    """A tab in one of the renderers, which the tests of a file use one after another.

    An open page keeps a core busy, so the other renderer's is closed.
    """
    return _desks(request.param)


@pytest.fixture(autouse=True)
def _clean(request):
    """No test leaves a run going on, or an uncaught error or a warning of ours in the page's console."""
    desk = request.getfixturevalue("desk") if "desk" in request.fixturenames else None
    if desk is not None:
        desk.complaints.clear()
    yield
    if desk is not None:
        from wan_train.tests.browser.desk import until

        until(lambda: _is_idle(desk.host), "the end of what was queued")
        assert desk.complaints == []


def _is_idle(host) -> bool:
    """Whether nothing runs; else it is told to end: what a test has left running would keep the next from running."""
    host.server.request("/queue", {"clear": True})
    queue = host.server.request("/queue")
    if not queue["queue_running"] and not queue["queue_pending"]:
        return True
    host.interrupt()
    return False


def pytest_collection_modifyitems(config, items):
    """The short form leaves out the files of whole trainings, which take minutes: `run.py campaign page` has all."""
    if config.getoption("--both-renderers"):
        return
    left_out = {item for item in items if item.path.stem in LONG_FORM and item.path.parent.name == "browser"}
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]
