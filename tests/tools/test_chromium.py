"""Tests of the page are not left out unseen: CI on Linux must have a browser."""

import shutil
import sys

import pytest
from wan_train.tests.chromium import find_chromium, leave


@pytest.mark.parametrize(
    ("ci", "platform", "outcome"),
    [
        ("true", "linux", pytest.fail.Exception),
        ("true", "win32", pytest.skip.Exception),
        ("", "linux", pytest.skip.Exception),
    ],
)
def test_a_missing_browser_is_a_failure_where_it_must_be_there(monkeypatch, ci, platform, outcome):
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match=r"install it \(apt-get install chromium\), or put chromium, .* on the PATH"):
        find_chromium()


def test_a_browser_that_is_there_is_found(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if name == "google-chrome" else None)
    assert find_chromium() == "/bin/google-chrome"


def test_a_missing_playwright_is_a_failure_under_ci_everywhere(monkeypatch):
    monkeypatch.setenv("CI", "true")
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(pytest.fail.Exception, match="pip install"):
        leave("Playwright is not installed: pip install playwright")
