"""Waiting for what daemons leave behind. libvirt takes a guest for running until somebody has waited for its QEMU, and
in containers process 1 often does that late or never; as the processes' nearest ancestor we do it at once."""

import ctypes
import os
import signal

_PR_SET_CHILD_SUBREAPER = 36
"""prctl(2), since Linux 3.4."""
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_WAITED_FOR = {signal.SIGCHLD, *_PASSED_ON}


def wait_for_them() -> None:
    """Return in a new process, which is to do the work; this one only waits for what ends, and then ends as that did.

    Call it before anything else has been started or said.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED_FOR)
    ctypes.CDLL(None).prctl(*map(ctypes.c_ulong, (_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)))
    worker = os.fork()
    if worker:
        _end_as(_wait(worker))
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _wait(worker: int) -> int:
    """What waitpid says of the worker."""
    while True:
        found = signal.sigwaitinfo(_WAITED_FOR)
        if found.si_signo == signal.SIGCHLD:
            status = _reap(worker)
            if status is not None:
                return status
        elif found.si_code <= 0:
            # From a process, to us alone. What a terminal sends the worker gets as well.
            os.kill(worker, found.si_signo)


def _reap(worker: int) -> int | None:
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid in (0, worker):
            return status if pid else None


def _end_as(status: int) -> None:
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {-code})
        os.kill(os.getpid(), -code)
    os._exit(code)
