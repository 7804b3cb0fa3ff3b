"""Makes the pack importable as `wan_train`, without running its node entry, and finds the real ComfyUI."""

import gc
import importlib.util
import os
import shutil
import sys
import tempfile
from multiprocessing.util import Finalize
from pathlib import Path

import pytest

PACK = Path(__file__).resolve().parent.parent
# Tests count the bytes of a backward on the CPU: where that has bf16 of its own, oneDNN allocates others for its products.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")
# A run's lock on its device lies in the folder for temporary files: test processes must not wait for each other's runs.
if os.environ.get("PYTEST_XDIST_WORKER"):
    tempfile.tempdir = tempfile.mkdtemp(prefix=f"wantrain-{os.environ['PYTEST_XDIST_WORKER']}-")
    os.environ["TMPDIR"] = tempfile.tempdir
    # after multiprocessing's own folder in it has gone, whose finalizer has the priority -100
    Finalize(None, shutil.rmtree, [tempfile.tempdir], {"ignore_errors": True}, exitpriority=-200)
LEFT_OUT = pytest.StashKey[int]()  # number of tests of grids


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="also the tests that take minutes")
    parser.addoption("--grids", action="store_true", help="all of the grids, of which a run tries a part (grids.py)")
    parser.addoption("--seed", type=int, help="which part of the grids; default: another with each commit")
    parser.addoption("--breaks", action="store_true", help="put faults into the training; functional tests must fail")
    parser.addoption(
        "--both-renderers", action="store_true", help="tests of the page: each in both of ComfyUI's renderers"
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "long: takes minutes; runs with --long alone")
    config.addinivalue_line("markers", "grid(n): of many combinations about one of n is tried, each time another")
    if config.option.seed is None:  # before other processes are started, which then have the same one
        from wan_train.tests.grids import seed_of

        config.option.seed = seed_of(PACK)
    _start_warm(config)


def _register_pack() -> None:
    # pytest may put the pack's root on sys.path; our nodes/ would then shadow the host's nodes.py.
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != PACK]
    if "wan_train" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "wan_train", PACK / "__init__.py", submodule_search_locations=[str(PACK)]
        )
        assert spec is not None
        sys.modules["wan_train"] = importlib.util.module_from_spec(spec)


_register_pack()


def find_host() -> Path | None:
    """The ComfyUI checkout: COMFYUI_PATH, the one this pack sits in, or comfy-cli's default workspace."""
    candidates = [os.environ.get("COMFYUI_PATH"), PACK.parent.parent, Path.home() / "comfy" / "ComfyUI"]
    for candidate in candidates:
        if candidate and (Path(candidate) / "comfy" / "sd.py").is_file():
            return Path(candidate)
    return None


@pytest.fixture(scope="session")
def host_path() -> Path:
    """Path of the real ComfyUI. Without one the test is skipped; under CI it fails."""
    path = find_host()
    if path is None:
        message = "ComfyUI was not found: set COMFYUI_PATH to its folder"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return path


_LEFT = {"modules": 0}


def _leave_to_the_end() -> None:
    """What has been imported by now stays to the end: collections of garbage in tests need not walk through it each time."""
    gc.freeze()
    _LEFT["modules"] = len(sys.modules)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Some libraries are imported by the first test that needs them."""
    if item.path != _LEFT.get("path"):
        _LEFT["path"] = item.path
        if len(sys.modules) > _LEFT["modules"] + 100:
            _leave_to_the_end()


@pytest.fixture(scope="session")
def comfy(host_path: Path):
    """The host's `comfy` package, imported in this process on the CPU."""
    if str(host_path) not in sys.path:
        sys.path.insert(0, str(host_path))
    argv, sys.argv = sys.argv, [sys.argv[0], "--cpu"]
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args

        comfy.cli_args.args.cpu = True
        import comfy.sd
    finally:
        sys.argv = argv
    import comfy

    _leave_to_the_end()
    return comfy


def _start_warm(config) -> None:
    """Let processes of `wantrain` be forks of one that has imported everything (warm.py), where that can be."""
    from wan_train.core.launch import ahead  # noqa: F401 - which starts them
    from wan_train.tests.host_packs.warm_start import ADDRESS, use
    from wan_train.tests.warm import CAN_FORK, warm_processes

    if not CAN_FORK or os.environ.get("WANTRAIN_FORKS") != "1":  # run.py test says so
        return
    if not hasattr(config, "workerinput"):  # one for all processes of pytest-xdist
        processes = warm_processes()
        os.environ[ADDRESS] = processes.__enter__()
        config.add_cleanup(lambda: processes.__exit__(None, None, None))
    use()


@pytest.fixture
def cold(monkeypatch):
    """Processes of `wantrain` are started anew, as people's are."""
    from wan_train.tests.host_packs.warm_start import ADDRESS

    monkeypatch.delenv(ADDRESS, raising=False)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB, so that 'no space left' is real. Needs the right to mount; skipped without."""
    import subprocess

    place = tmp_path / "small"
    place.mkdir()
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", place]).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture(scope="session")
def host(host_path: Path, tmp_path_factory):
    """The real ComfyUI, running with the pack, the miniature models and a small dataset in input/shapes."""
    from wan_train.tests.host_server import start_host
    from wan_train.tools.miniature import write_family
    from wan_train.tools.shapes import draw_dataset

    base = tmp_path_factory.mktemp("host")
    write_family(base / "models")
    draw_dataset(base / "input" / "shapes", clips=2, images=1, size=64, frames=9, seed=0)
    with start_host(host_path, base, packs=[PACK, PACK / "tests" / "host_packs" / "tiny_clip"]) as running:
        yield running
    assert running.server.process.poll() is not None


def pytest_collection_modifyitems(config, items):
    """Those that are marked long only with --long, and of grids a part; in the order of order.py."""
    if not config.getoption("--long"):
        left_out = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("long")]
    from wan_train.tests.grids import is_whole_run, sift
    from wan_train.tests.order import put_in_order

    is_again = any(config.getoption(name, False) for name in ("lf", "failedfirst", "stepwise"))  # what failed before
    is_whole = is_whole_run(config.args, config.option.keyword, PACK) and not is_again
    if not config.getoption("--grids") and is_whole:
        items[:], left_out = sift(items, config.option.seed)
        config.hook.pytest_deselected(items=left_out)
        config.stash[LEFT_OUT] = len(left_out)
        if hasattr(config, "workeroutput"):
            config.workeroutput["of_grids"] = len(left_out)
    put_in_order(items, PACK / "tests")


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """What a process of pytest-xdist has left out."""
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("of_grids", 0)


def pytest_terminal_summary(terminalreporter, config):
    left_out, seed = config.stash.get(LEFT_OUT, 0), config.option.seed
    if left_out:
        terminalreporter.write_line(
            f"{left_out} combinations of grids were left to other runs: --seed {seed} tries the same part, --grids all."
        )


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """All test files are imported, of which a fifth of the time goes into collections that find no garbage."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_collection_finish():
    _leave_to_the_end()


def pytest_sessionfinish():
    gc.unfreeze()  # else libraries say at the exit that something of theirs is left


@pytest.fixture(scope="session")
def _rank_processes(tmp_path_factory):
    from wan_train.tests.ranks import Ranks

    processes = Ranks().in_folder(tmp_path_factory.mktemp("ranks"))
    yield processes
    processes.close()


@pytest.fixture
def ranks(_rank_processes):
    """`ranks(2)(function, *args)`: what a function of the test module, given its world and `args`, returns in each rank."""
    return _rank_processes.of
