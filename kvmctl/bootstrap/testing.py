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

PARTS = "KVMCTL_TEST_PARTS"
"""The variable with the folder in which pytests that run at once note which test each of them runs."""
NESTED_SECONDS = 1200.0
"""Deadline for one attempt at the nested host's tests."""
_AT_ONCE = 2
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
    code = _at_once(arguments)
    if code != EXIT_HOST_DIED:
        return code
    say("a nested host itself died, as pytest says above: its tests are run once more, all of them, in new ones")
    code = _at_once(arguments)
    say("the second attempt: " + ("a host died again" if code == EXIT_HOST_DIED else f"pytest ended with {code}"))
    return code


def _at_once(arguments: Sequence[str]) -> int:
    """The exit code of all together: that of a test's failure, before that of a host's death."""
    with tempfile.TemporaryDirectory() as taken, ExitStack() as stack:
        others = [stack.enter_context(tempfile.TemporaryFile()) for _number in range(_AT_ONCE - 1)]
        say(f"the nested tests run in {_AT_ONCE} hosts at once; what is said of the others comes after the first")
        begun = [_start((*_NESTED, *arguments), taken, out) for out in (None, *others)]
        try:
            codes = _all_of(begun, NESTED_SECONDS)
        finally:
            for out in others:
                _show(out)
    return next((code for code in codes if code not in (0, EXIT_HOST_DIED)), max(codes))


def _show(out: IO[bytes]) -> None:
    out.seek(0)
    sys.stdout.write(out.read().decode(errors="replace"))
    sys.stdout.flush()


def _start(arguments: Sequence[str], parts: str = "", out: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
    sys.stdout.flush()
    command = [str(environment.PYTHON), "-m", "pytest", "tests", *arguments]
    settings = os.environ | ({PARTS: parts} if parts else {})
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
