"""What is kept of a machine is of one version, which changes with the predictions."""

import json
import shutil

from wan_train.core.plan import kept
from wan_train.core.plan.kept import predictions_version, read_kept, write_kept


def test_of_another_version_it_says_nothing_and_is_replaced(tmp_path):
    path = tmp_path / "kept.json"
    write_kept(path, "1", {"a": 1})
    assert read_kept(path, "1") == {"version": "1", "a": 1}
    assert read_kept(path, "2") == {}
    write_kept(path, "2", {"b": 2})
    assert json.loads(path.read_text()) == {"version": "2", "b": 2}
    for content in ("", "[]", "{", '{"a": 1}'):
        path.write_text(content)
        assert read_kept(path, "1") == {}


def test_every_part_that_predicts_is_in_the_version(tmp_path):
    """Constants, kinds of adapter, precisions, optimizers and passes as well as the formulas."""
    for folder in kept._PREDICTING:
        shutil.copytree(kept._CORE / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    seen = {predictions_version.__wrapped__(tmp_path)}
    assert seen == {predictions_version.__wrapped__()}
    for name in (
        "plan/block_bytes.py",
        "plan/constants.json",
        "adapters/kinds/lokr.py",
        "memory/precisions/fp8.py",
        "optimizers/muon.py",
        "objective/passes.py",
    ):
        path = tmp_path / name
        path.write_bytes(path.read_bytes() + b"\n")
        now = predictions_version.__wrapped__(tmp_path)
        assert now not in seen, name
        seen.add(now)
