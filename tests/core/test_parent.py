"""What a parent writes into standard input, read by a thread beside which other processes are started."""

import os
import subprocess
import sys
from pathlib import Path

PACK = Path(__file__).resolve().parents[2]
READER = """
import os, subprocess, sys, threading
sys.path.insert(0, sys.argv[1])
import wantrain
wantrain.load_pack()
from wan_train.core.parent import read_told
ended, read = threading.Event(), []
def follow():
    while told := read_told(0, 3):
        read.append(told)
        print("told", flush=True)
    ended.set()
threading.Thread(target=follow, daemon=True).start()
# On Windows such a process waits in its start, and this one with it, as long as somebody waits for what a pipe will hold.
subprocess.run([sys.executable, "-c", "import os; os.fstat(0)"], check=True)
print("ready", flush=True)
ended.wait()
print(b"".join(read), max(map(len, read)), flush=True)
"""


def test_processes_can_be_started_while_it_is_waited_for(tmp_path):
    command = [sys.executable, "-c", READER, str(PACK)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline().strip() == b"ready"
        process.stdin.write(b"folder\n")
        process.stdin.flush()
        assert process.stdout.readline().strip() == b"told"
        process.stdin.close()
        assert process.stdout.read().splitlines()[-1] == b"b'folder\\n' 3"
        assert process.wait() == 0


def test_a_file_in_its_place_is_read_to_its_end(tmp_path):
    (tmp_path / "in").write_bytes(b"abcdef")
    with (tmp_path / "in").open("rb") as file:
        done = subprocess.run(
            [sys.executable, "-c", READER, str(PACK)], stdin=file, capture_output=True, check=True, timeout=100
        )
    assert b"b'abcdef' 3" in done.stdout


def test_what_is_printed_for_a_program_is_in_utf_8_whatever_the_code_page(tmp_path):
    name = os.fsencode(tmp_path) + "/Müller \udcff".encode("utf-8", "surrogateescape")  # and a byte that is no text
    command = [sys.executable, str(PACK / "wantrain.py"), "train", name, "--follow-stdin"]
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=environment, check=False)
    assert done.returncode == 1
    assert "Müller \\udcff" in done.stderr.decode()
