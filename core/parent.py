"""Standard input as a line from the process that started this one: it tells something, and closes when that process ends."""

import os
import sys
import time

_POLL_S = 0.05


def read_told(file: int, most: int) -> bytes:
    """As os.read: what a pipe holds, `most` bytes of it; waits for some, and gives b"" when the other end is closed.

    On Windows a pipe is looked at until it holds something. A read that waits there holds up everybody who only asks what the
    pipe is: each process that is started meanwhile and inherits it, and libraries that look at standard input when they are
    loaded (python/cpython#78961).
    """
    if sys.platform != "win32":
        return os.read(file, most)
    import _winapi
    import msvcrt

    while True:
        try:
            held = _winapi.PeekNamedPipe(msvcrt.get_osfhandle(file), 0)[0]
        except BrokenPipeError:
            return b""
        except OSError:  # no pipe: a console, or a file
            return os.read(file, most)
        if held:
            return os.read(file, min(most, held))
        time.sleep(_POLL_S)
