"""Which files of tests come first."""

from pathlib import Path
from types import SimpleNamespace

from wan_train.tests.order import LONGEST, missing, put_in_order

TESTS = Path(__file__).resolve().parent


def test_files_that_take_longest_are_there():
    assert missing(TESTS) == []
    assert missing(TESTS, ["test_order", "test_gone"]) == ["test_gone"]
    assert len(set(LONGEST)) == len(LONGEST)


def test_the_host_comes_first_then_what_takes_longest_then_the_others_as_they_were():
    names = ["core/test_b", "core/test_a", LONGEST[1], "host/test_z", LONGEST[0], "host/test_y"]
    fixtures = {name: ["host"] if name.startswith("host") else [] for name in names}
    items = [SimpleNamespace(path=TESTS / f"{name}.py", fixturenames=fixtures[name]) for name in names]
    items.append(SimpleNamespace(path=Path("/elsewhere/test_c.py")))
    put_in_order(items, TESTS)
    found = [item.path.with_suffix("").name for item in items]
    first = [Path(name).name for name in LONGEST[:2]]
    assert found == ["test_z", "test_y", *first, "test_b", "test_a", "test_c"]
