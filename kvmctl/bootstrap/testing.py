"""Runs the tests. Those of the nested host come last, in a pytest of their own: it is bounded, and run once more as a
whole if that host dies of itself, which is no test's failure."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from kvmctl.bootstrap import environment
from kvmctl.bootstrap.nested import image
from kvmctl.bootstrap.nested.host import EXIT_HOST_DIED
from kvmctl.bootstrap.progress import say
from kvmctl.model.errors import TimedOutError

NESTED_SECONDS = 1200.0
"""Deadline for one attempt at the nested host's tests."""
_STOP_SECONDS = 60.0
_NESTED = ("-m", "nested")
_VAGRANT = ("-m", "vagrant")


def wants_vagrant(arguments: Sequence[str]) -> bool:
    """Whether the arguments for pytest choose the tests of Vagrant, which nothing else does."""
    return tuple(arguments[:2]) == _VAGRANT


def run(arguments: Sequence[str]) -> int:
    """Run every tier but Vagrant's, or what arguments for pytest choose; the exit code of the first that fails.

    Raises KvmctlError where the nested host's image cannot be built, TimedOutError where its tests do not end.
    """
    if tuple(arguments[:2]) == _NESTED:
        return _nested(arguments[2:])
    if arguments:
        return _pytest(arguments)
    others = _pytest(("-m", "not nested"))
    return _nested() or others


def _nested(arguments: Sequence[str] = ()) -> int:
    image.ensure()
    chosen = (*_NESTED, *arguments)
    code = _pytest(chosen, NESTED_SECONDS)
    if code != EXIT_HOST_DIED:
        return code
    say("the nested host itself died, as pytest says above: its tests are run once more, all of them, in a new one")
    code = _pytest(chosen, NESTED_SECONDS)
    ended = "died again" if code == EXIT_HOST_DIED else f"lived; pytest ended with {code}"
    say(f"of two nested hosts the first died, the second {ended}")
    return code


def _pytest(arguments: Sequence[str], seconds: float | None = None) -> int:
    sys.stdout.flush()
    command = [str(environment.PYTHON), "-m", "pytest", "tests", *arguments]
    with subprocess.Popen(command, cwd=environment.CHECKOUT, env=os.environ) as pytest:
        try:
            return pytest.wait(seconds)
        except KeyboardInterrupt:
            # It got the signal as well, and tidies up.
            pytest.wait()
            raise
        except subprocess.TimeoutExpired as error:
            _stop(pytest)
            raise TimedOutError(
                f"`{' '.join(command)}` has not ended within {seconds:g} s",
                "the test that it was in is the last one named above",
            ) from error


def _stop(pytest: subprocess.Popen[bytes]) -> None:
    """End it as by Ctrl-C, so that it tidies up, else at once."""
    pytest.send_signal(signal.SIGINT)
    try:
        pytest.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        pytest.kill()
