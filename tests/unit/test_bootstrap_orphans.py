"""The process that waits for orphans: what it adopts is gone, and it ends as its worker does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import until

pytestmark = pytest.mark.unit

_ORPHAN = """
import os, sys
from kvmctl.bootstrap.orphans import wait_for_them
above = os.getpid()
wait_for_them()
assert os.getppid() == above != os.getpid()
read, write = os.pipe()
if not os.fork():
    if not os.fork():
        # Not before whoever started it has ended.
        os.read(read, 1)
        print(os.getpid(), os.getppid() == above, flush=True)
    os._exit(0)
os.wait()
os.write(write, b".")
sys.stdin.read()
sys.exit(7)
"""
_WORKER = """
import signal, sys
from kvmctl.bootstrap.orphans import wait_for_them
wait_for_them()
if "tidy" in sys.argv:
    def end(*_):
        print("tidied", flush=True)
        sys.exit(3)
    signal.signal(signal.SIGTERM, end)
print("up", flush=True)
signal.pause()
"""


def started(text: str, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", text, *words]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_an_orphan_is_adopted_and_waited_for() -> None:
    with started(_ORPHAN) as above:
        assert above.stdout
        assert above.stdin
        pid, adopted = above.stdout.readline().split()
        assert adopted == "True"
        until(lambda: Path(f"/proc/{pid}").exists(), lambda there: not there, 30, "the orphan")
        above.stdin.close()
        assert above.wait(30) == 7


@pytest.mark.parametrize(("words", "code", "said"), [((), -signal.SIGTERM, ""), (("tidy",), 3, "tidied\n")])
def test_a_signal_is_passed_on_and_the_end_is_the_worker_s(words: tuple[str, ...], code: int, said: str) -> None:
    with started(_WORKER, *words) as above:
        assert above.stdout
        assert above.stdout.readline() == "up\n"
        os.kill(above.pid, signal.SIGTERM)
        assert above.wait(30) == code
        assert above.stdout.read() == said
