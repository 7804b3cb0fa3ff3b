"""Stamps of files that were looked at."""

import os

import pytest
from wan_train.core.data.stamps import Stamps, file_stamp


@pytest.fixture
def root(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    return tmp_path


def test_they_outlive_the_process_and_not_a_change(root, await_tick):
    stamps = Stamps(root, "stamps.json")
    stamp = file_stamp(root / "a")
    assert not stamps.has("a", stamp)
    stamps.put("a", stamp)
    assert stamps.has("a", stamp)
    assert not Stamps(root, "stamps.json").has("a", stamp)
    stamps.save()
    assert Stamps(root, "stamps.json").has("a", stamp)
    await_tick(root / "a")
    (root / "a").write_text("c")
    os.utime(root / "a", ns=(stamp[1], stamp[1]))
    assert file_stamp(root / "a")[:2] == stamp[:2]
    assert not Stamps(root, "stamps.json").has("a", file_stamp(root / "a"))


def test_two_processes_keep_each_others_and_what_is_gone_is_forgotten(root):
    first, second = Stamps(root, "stamps.json"), Stamps(root, "stamps.json")
    stamps = {name: file_stamp(root / name) for name in ("a", "b")}
    assert not first.has("b", stamps["b"])
    first.put("a", stamps["a"])
    second.put("b", stamps["b"])
    first.save()
    second.save()
    assert all(Stamps(root, "stamps.json").has(name, stamp) for name, stamp in stamps.items())
    (root / "a").unlink()
    second.put("b", stamps["b"])
    second.save()
    assert not Stamps(root, "stamps.json").has("a", stamps["a"])


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b'{"version": 99, "files": {"a": [1]}}', b'{"version": 1, "files": 3}']
)
def test_a_damaged_or_later_file_counts_as_absent_and_is_replaced(root, text):
    (root / "stamps.json").write_bytes(text)
    stamps = Stamps(root, "stamps.json")
    stamp = file_stamp(root / "a")
    assert not stamps.has("a", stamp)
    stamps.put("a", stamp)
    stamps.save()
    assert Stamps(root, "stamps.json").has("a", stamp)
