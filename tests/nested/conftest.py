"""One nested host for all tests of this tier. Where it dies of itself nothing more is run, and the exit code says so:
that is not a test's failure, and `python3 -m kvmctl.bootstrap test` runs the tier once more."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from kvmctl.bootstrap.nested import image
from kvmctl.bootstrap.nested.host import EXIT_HOST_DIED, HostDiedError, booted
from kvmctl.model.errors import KvmctlError
from tests.conftest import cannot
from tests.nested.support import Nested


class Keeper:
    """Has a nested host ready, the same for all tests."""

    def __init__(self) -> None:
        self.stack = contextlib.ExitStack()
        self.current: Nested | None = None
        self.died = False
        self.failed = False
        """Whether a test failed while its host lived."""

    def get(self) -> Nested:
        """The host, booted if there is none."""
        if self.current is None:
            self.current = Nested(self.stack.enter_context(booted(image.ensure())))
        return self.current

    def illness(self) -> str:
        """What the kernel of the host that runs has said, if it is that which makes tests fail."""
        return self.current.host.illness() if self.current else ""

    def drop(self) -> None:
        """End it."""
        self.current = None
        self.stack.close()


_keeper = Keeper()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Note that the host died, and run no further test."""
    report = yield
    if not call.excinfo or call.excinfo.errisinstance(pytest.skip.Exception):
        return report
    error = call.excinfo.value
    if said := error.message if isinstance(error, HostDiedError) else _keeper.illness():
        _keeper.died = True
        item.session.shouldstop = item.session.shouldstop or f"in {item.nodeid}: {said.splitlines()[0]}"
    else:
        _keeper.failed = True
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """End the host; its death is the session's result unless a test has failed without it."""
    _keeper.drop()
    if _keeper.died and not _keeper.failed:
        session.exitstatus = EXIT_HOST_DIED


@pytest.fixture
def nested() -> Iterator[Nested]:
    """The nested host, in which no guest is left afterwards, and devices have the drivers that they had."""
    try:
        found = _keeper.get()
    except HostDiedError:
        raise
    except KvmctlError as error:
        cannot(error.message)
    before = found.drivers()
    yield found
    found.tidy(before)


@pytest.fixture
def alone() -> None:
    """No nested host runs: the test boots one itself."""
    _keeper.drop()
