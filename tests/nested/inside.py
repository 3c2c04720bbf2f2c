"""Runs in the nested host, alone: one command on the console of a guest there, and what it said.

    inside.py TERMINAL SECONDS COMMAND

The exit code is the command's; 124 where the guest has not answered in time.
"""

from __future__ import annotations

import os
import re
import select
import sys
import time
import tty

ASK_AGAIN = 3.0
"""Seconds; what was asked before the guest's init listened is lost."""


def ask(file: int, command: str, deadline: float) -> tuple[int, str]:
    token = os.urandom(4).hex()
    line = f"! echo begin-''{token}; {command}\n".encode()
    pattern = re.compile(rb"begin-" + token.encode() + rb"\r?\n(.*?)micro-done (\d+)", re.DOTALL)
    seen, asked = b"", False
    while (left := deadline - time.monotonic()) > 0:
        if not asked:
            asked = is_there(file, min(left, ASK_AGAIN))
            if asked:
                os.write(file, line)
            continue
        if select.select([file], [], [], left)[0]:
            seen += read(file)
        if found := pattern.search(seen):
            return int(found[2]), found[1].decode(errors="replace").replace("\r\n", "\n")
    return 124, seen.decode(errors="replace")


def is_there(file: int, seconds: float) -> bool:
    token = os.urandom(4).hex()
    os.write(file, f"! echo here-''{token}\n".encode())
    seen, deadline = b"", time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if select.select([file], [], [], left)[0]:
            seen += read(file)
        if re.search(rb"here-" + token.encode() + rb".*?micro-done 0", seen, re.DOTALL):
            return True
    return False


def read(file: int) -> bytes:
    try:
        return os.read(file, 65536)
    except BlockingIOError:
        return b""


def main(terminal: str, seconds: str, command: str) -> int:
    file = os.open(terminal, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    tty.setraw(file)
    code, said = ask(file, command, time.monotonic() + float(seconds))
    print(said, end="")
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
