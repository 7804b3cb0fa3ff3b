"""A disk as Windows has it: what another program has open can't be renamed, replaced or deleted."""

import errno
from pathlib import Path


def refused(code):
    """The error with Windows' own number."""
    error = PermissionError(errno.EACCES, "The process cannot access the file")
    error.winerror = code
    return error


class WindowsDisk:
    """`open` and `mapped`: files that another program has so. `scans`: it has a file of every folder open.

    Each time that one stands in the way, `asked` counts, and `on_refusal` is called.
    """

    def __init__(self, monkeypatch):
        self.open, self.mapped, self.scans, self.asked = set(), set(), False, 0
        self.on_refusal = lambda: None
        real_rename, real_replace, real_unlink = Path.rename, Path.replace, Path.unlink

        def rename(path, target):
            self._refuse(path, 32, self.open)
            if path.is_dir():
                self._refuse_within(path)
            return real_rename(path, target)

        def replace(path, target):
            self._refuse(path, 32, self.open)
            self._refuse(Path(target), 5, self.open | self.mapped)
            return real_replace(path, target)

        def unlink(path, missing_ok=False):
            self._refuse(path, 32, self.open | self.mapped)
            return real_unlink(path, missing_ok)

        for name, act in {"rename": rename, "replace": replace, "unlink": unlink}.items():
            monkeypatch.setattr(Path, name, act)

    def _refuse(self, path, code, held):
        if path in held and path.exists():
            self.asked += 1
            self.on_refusal()
            raise refused(code)

    def _refuse_within(self, folder):
        inside = [path for path in self.open if folder in path.parents and path.exists()]
        self._refuse(folder, 5, {folder} if inside or self.scans else set())
