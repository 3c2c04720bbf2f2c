"""Runs the tests. Those of the nested host come last, in two pytests at once, each with a host of its own, as one keeps
one processor busy. They are bounded, and run once more as a whole if a host dies of itself: no test has failed then."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import IO

from kvmctl.bootstrap import environment
from kvmctl.bootstrap.nested import image
from kvmctl.bootstrap.nested.host import EXIT_HOST_DIED
from kvmctl.bootstrap.progress import say
from kvmctl.model.errors import TimedOutError

PART = "KVMCTL_TEST_PART"
"""The variable that says to pytest which part of the nested tests to run: `0/2` for the first of two."""
NESTED_SECONDS = 1200.0
"""Deadline for one attempt at the nested host's tests."""
_PARTS = 2
_EXIT_NOTHING = 5
"""How pytest ends where no test was chosen."""
_STOP_SECONDS = 60.0
_NESTED = ("-m", "nested")
_VAGRANT = ("-m", "vagrant")


def wants_vagrant(arguments: Sequence[str]) -> bool:
    """Whether the arguments for pytest choose the tests of Vagrant, which nothing else does."""
    return tuple(arguments[:2]) == _VAGRANT


def run(arguments: Sequence[str]) -> int:
    """Run every tier but Vagrant's, or what arguments for pytest choose; the exit code of one that fails.

    Raises KvmctlError where the nested host's image cannot be built, TimedOutError where its tests do not end.
    """
    if tuple(arguments[:2]) == _NESTED:
        return _nested(arguments[2:])
    if arguments:
        return _all_of([_start(arguments)])[0]
    others = _all_of([_start(("-m", "not nested"))])[0]
    return _nested() or others


def _nested(arguments: Sequence[str] = ()) -> int:
    image.ensure()
    code = _in_parts(arguments)
    if code != EXIT_HOST_DIED:
        return code
    say("a nested host itself died, as pytest says above: its tests are run once more, all of them, in new ones")
    code = _in_parts(arguments)
    say("the second attempt: " + ("a host died again" if code == EXIT_HOST_DIED else f"pytest ended with {code}"))
    return code


def _in_parts(arguments: Sequence[str]) -> int:
    """The exit code of all parts: that of a part that failed, before that of one whose host died."""
    with ExitStack() as stack:
        begun, said = [], []
        for number in range(_PARTS):
            out = stack.enter_context(tempfile.TemporaryFile()) if number else None
            said.append(out)
            begun.append(_start((*_NESTED, *arguments), f"{number}/{_PARTS}", out))
        say(f"the nested tests run in {_PARTS} parts at once; what the others say comes after the first")
        try:
            codes = _all_of(begun, NESTED_SECONDS)
        finally:
            for out in filter(None, said):
                _show(out)
    ran = [code for code in codes if code != _EXIT_NOTHING] or [_EXIT_NOTHING]
    return next((code for code in ran if code not in (0, EXIT_HOST_DIED)), max(ran))


def _show(out: IO[bytes]) -> None:
    out.seek(0)
    sys.stdout.write(out.read().decode(errors="replace"))
    sys.stdout.flush()


def _start(arguments: Sequence[str], part: str = "", out: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
    sys.stdout.flush()
    command = [str(environment.PYTHON), "-m", "pytest", "tests", *arguments]
    settings = os.environ | ({PART: part} if part else {})
    return subprocess.Popen(command, cwd=environment.CHECKOUT, env=settings, stdout=out, stderr=out)


def _all_of(begun: Sequence[subprocess.Popen[bytes]], seconds: float | None = None) -> list[int]:
    """Their exit codes. Raises TimedOutError, after they were ended."""
    deadline = time.monotonic() + seconds if seconds else None
    try:
        return [one.wait(deadline and max(0, deadline - time.monotonic())) for one in begun]
    except KeyboardInterrupt:
        # They got the signal as well, and tidy up.
        for one in begun:
            one.wait()
        raise
    except subprocess.TimeoutExpired as error:
        _stop(begun)
        raise TimedOutError(
            f"the nested host's tests have not ended within {seconds:g} s",
            "the test that they were in is the last one named above",
        ) from error


def _stop(begun: Sequence[subprocess.Popen[bytes]]) -> None:
    """End them as by Ctrl-C, so that they tidy up, else at once."""
    for one in begun:
        one.send_signal(signal.SIGINT)
    for one in begun:
        try:
            one.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            one.kill()
            one.wait()
