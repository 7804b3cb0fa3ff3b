"""What is printed of a process that failed."""

import signal
import sys

import pytest
from wan_train.tools.nano.failure import LONGEST, error_line, why_failed

FULL = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 MiB."
TRACEBACK = f"""step 3
Traceback (most recent call last):
  File "x.py", line 1, in <module>
    raise Error(": no")
{FULL}
"""


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (TRACEBACK, FULL),
        ("torch.AcceleratorError: CUDA: no\nCompile with TORCH_USE_CUDA_DSA.\n\n", "torch.AcceleratorError: CUDA: no"),
        ("KeyboardInterrupt\n", "KeyboardInterrupt"),
        ("a\nthe folder is full\n", "the folder is full"),
        ("", ""),
        (f"ValueError: {'x' * 1000}", f"ValueError: {'x' * (LONGEST - 12)}..."),
    ],
)  # fmt: skip
def test_the_last_line_that_names_an_error_is_told(said, line):
    assert error_line(said) == line


def test_a_process_that_failed_is_told_in_one_line_with_its_log(tmp_path):
    log = tmp_path / "log.txt"
    assert why_failed(3, log) == f"ended with the code 3 (all of it: {log})"
    log.write_text(TRACEBACK, encoding="utf-8")
    assert why_failed(1, log) == f"{FULL} (all of it: {log})"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals that end a process")
def test_a_process_that_was_killed_is_told_as_such(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("step 3\n", encoding="utf-8")
    assert why_failed(-signal.SIGKILL, log) == f"ended by SIGKILL, after: step 3 (all of it: {log})"
