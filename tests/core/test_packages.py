"""Missing and old packages are told with the command to run, and nothing is imported for it."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from wan_train.core import packages
from wan_train.core.adapters.peft_hooks import import_adapters
from wan_train.core.errors import ConfigError
from wan_train.core.packages import check_packages, package_problems, pip_command, release, unusable

PACK = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("0.9", "0.10"),
        ("0.19.9", "0.20.0rc1"),
        ("14.1.99", "14.2.0.dev3"),
        ("0.46.0", "0.46.1+cu126"),
        ("1!0.1", "0.2"),
    ],
)
def test_versions_are_compared_as_numbers(older, newer):
    assert release(older) < release(newer)


@pytest.mark.parametrize(
    "version", ["0.20", "0.20.0", "0.20.0rc1", "0.20.0.dev5", "v0.20", "0.20.0+local", "0.20.0-beta"]
)
@pytest.mark.parametrize("has_packaging", [True, False])
def test_a_preview_of_a_version_counts_as_it(version, has_packaging, monkeypatch):
    if not has_packaging:
        monkeypatch.setitem(sys.modules, "packaging.version", None)
    assert release(version) == release("0.20") == (0, 20)
    assert release("unknown") == ()


def installed(monkeypatch, **versions):
    def version(name):
        if versions.get(name) is None:
            raise PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(packages.importlib.metadata, "version", version)


def test_each_problem_is_a_sentence_with_the_command_of_this_python(monkeypatch):
    installed(monkeypatch, av="9.0", bitsandbytes="0.46.0")
    command = pip_command("--upgrade", "peft")
    assert sys.executable in command
    assert package_problems() == [
        f"The package peft, needed for every training, is not installed: run {command} and start again.",
        f"The package av has version 9.0, but reading clips needs 14.2 or newer: run {pip_command('--upgrade', 'av')} and "
        "start again.",
    ]
    assert package_problems(["bitsandbytes"]) == []
    with pytest.raises(ConfigError, match=r"peft.*is not installed.*av has version"):
        check_packages()


def test_the_portable_pythons_command_leaves_the_users_own_packages_out():
    """ComfyUI's portable version starts `python_embeded/python.exe -s`, which does not see the user's own packages."""
    code = (
        f"import sys; sys.path.insert(0, {str(PACK)!r}); import wantrain; wantrain.load_pack()\n"
        "from wan_train.core.packages import pip_command; print(pip_command('peft'))"
    )
    said = subprocess.run([sys.executable, "-s", "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip().endswith("-s -m pip install peft")


def test_a_package_that_cannot_be_imported_is_told_with_its_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(
        ConfigError, match=r"peft can't be imported \(import of peft halted.*-m pip install --upgrade peft"
    ):
        import_adapters()
    error = unusable("bitsandbytes", RuntimeError("libcudart is not there\nmore"))
    assert "(libcudart is not there)" in str(error)
    assert "Or choose the optimizer adamw" in str(error)


def test_what_pip_is_told_is_what_is_checked():
    """In the metadata of the package, and in the file that ComfyUI Manager installs from."""
    project = (PACK / "pyproject.toml").read_text(encoding="utf-8")
    for need in packages.NEEDS.values():
        assert f'"{need.name}>={need.minimum}"' in project
    assert (PACK / "requirements.txt").read_text(encoding="utf-8").split() == [
        f"peft>={packages.NEEDS['peft'].minimum}"
    ]
