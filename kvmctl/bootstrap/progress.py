"""Long steps that can be seen: one moving line with the running time on a terminal, plain lines elsewhere."""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from kvmctl.model.errors import KvmctlError, TimedOutError

_CLEAR = "\r\x1b[K"
_AT_ONCE_SECONDS = 0.5
_MOVE_SECONDS = 1.0
_REMIND_SECONDS = 30.0
_TAIL_LINES = 25


def say(text: str) -> None:
    """One line for the person who watches."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def step(text: str) -> Iterator[None]:
    """Show that `text` is being done for as long as the block runs, and how long it took. What is
    done at once is not worth a line."""
    started = time.monotonic()
    ended = threading.Event()
    moving = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    shower = threading.Thread(target=_move if moving else _remind, args=(text, started, ended), daemon=True)
    shower.start()
    result = "failed"
    try:
        yield
        result = "done"
    except KeyboardInterrupt:
        result = "interrupted"
        raise
    finally:
        ended.set()
        shower.join()
        seconds = time.monotonic() - started
        if result == "failed" or seconds > _AT_ONCE_SECONDS:
            say(f"{_CLEAR if moving else ''}{text}: {result} ({seconds:.1f} s)")


def _move(text: str, started: float, ended: threading.Event) -> None:
    pause = _AT_ONCE_SECONDS
    while not ended.wait(pause):
        line = f"{text} … {time.monotonic() - started:.0f} s"
        # What does not fit into one line could not be taken back.
        sys.stderr.write(f"{_CLEAR}{line[: shutil.get_terminal_size().columns - 1]}")
        sys.stderr.flush()
        pause = _MOVE_SECONDS


def _remind(text: str, started: float, ended: threading.Event) -> None:
    if not ended.wait(_AT_ONCE_SECONDS):
        say(f"{text} …")
    while not ended.wait(_REMIND_SECONDS):
        say(f"{text} … {time.monotonic() - started:.0f} s")


def run(
    argv: Sequence[str],
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    timeout: float | None = None,
) -> str:
    """Run a program without input, in `folder`, and return what it printed.

    Raises KvmctlError with the end of its output if it fails or is missing, TimedOutError after `timeout` seconds.
    """
    command = " ".join(argv)
    with tempfile.TemporaryFile() as output:
        try:
            status = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "LC_ALL": "C", **(environment or {})},
                cwd=folder,
                timeout=timeout,
                check=False,
            ).returncode
        except FileNotFoundError as error:
            raise KvmctlError(f"{argv[0]} is not installed") from error
        except subprocess.TimeoutExpired as error:
            raise TimedOutError(f"`{command}` gave no answer within {timeout:.0f} s") from error
        text = _read(output)
    if status:
        raise KvmctlError(f"`{command}` ended with status {status}\n{_tail(text)}".rstrip())
    return text


def _read(output: IO[bytes]) -> str:
    output.seek(0)
    return output.read().decode(errors="replace")


def _tail(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.rstrip().splitlines()[-_TAIL_LINES:])
