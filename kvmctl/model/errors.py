"""Every failure kvmctl reports, each with one exit code and a sentence about what to do next."""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple


class KvmctlError(Exception):
    """The operation failed. `message` says what happened to which object, `hint` what to do next."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(KvmctlError):
    """Bad option, bad value or bad file."""

    exit_code = 2


class NotFoundError(KvmctlError):
    """The named object does not exist."""

    exit_code = 3


class ConflictError(KvmctlError):
    """The object exists already, or is in the wrong state."""

    exit_code = 4


class RefusedError(KvmctlError):
    """Refused by policy or a precondition: admission, unsafe device, no `--yes`."""

    exit_code = 5


class UnreachableError(KvmctlError):
    """The hypervisor cannot be reached, or does not permit it."""

    exit_code = 6


class TimedOutError(KvmctlError):
    """Timed out waiting for the guest or the host."""

    exit_code = 7


class PartialError(KvmctlError):
    """Some of several objects failed. Each failure has been reported already."""

    exit_code = 8


class LockedError(KvmctlError):
    """Another kvmctl holds the lock of this hypervisor."""

    exit_code = 9


EXIT_PENDING = 10
"""`diff` and `--dry-run`: changes are pending. Not an error, so not an exception."""


class Problem(NamedTuple):
    """One fault in a file that people write. `line` and `column` count from 1; 0 means the file as a whole."""

    file: str
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.message}" if self.line else f"{self.file}: {self.message}"


class FileError(UsageError):
    """A file that people write cannot be used; `problems` holds every fault found, in file order."""

    def __init__(self, problems: Sequence[Problem], hint: str = "") -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems), hint)
