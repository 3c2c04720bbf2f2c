"""One nested host for all tests of this tier, booted anew once if it dies of itself, which is reported."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import pytest
from _pytest.runner import runtestprotocol

from kvmctl.bootstrap.nested import image
from kvmctl.bootstrap.nested.host import Host, HostDiedError, booted
from kvmctl.model.errors import KvmctlError
from tests.conftest import cannot
from tests.nested.support import Nested


class Keeper:
    """Has a nested host ready, the same for all tests."""

    def __init__(self) -> None:
        self.stack = contextlib.ExitStack()
        self.current: Nested | None = None
        self.died = ""
        """What the host said last, where it died in the test that runs."""
        self.gone = ""
        """The same of the second one that died: no third is booted."""
        self.replaced = False

    def get(self) -> Nested:
        """The host, booted if there is none."""
        if self.gone:
            raise HostDiedError(f"the nested host has died twice, and is not booted again: {self.gone}")
        if self.current is None:
            host: Host = self.stack.enter_context(booted(image.ensure()))
            self.current = Nested(host)
        return self.current

    def drop(self) -> None:
        """End it."""
        self.current = None
        self.stack.close()


_keeper = Keeper()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    """Run a test again, in a new host, where the emulated machine itself died in it; once in a run of tests."""
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    _keeper.died = ""
    reports = runtestprotocol(item, nextitem=nextitem, log=False)
    if _keeper.died:
        _keeper.drop()
        said = _keeper.died.splitlines()[0]
        if _keeper.replaced:
            _keeper.gone = _keeper.gone or said
        else:
            _keeper.replaced = True
            warnings.warn(f"the nested host died in {item.nodeid}, run again in a new one: {said}", stacklevel=1)
            item._initrequest()  # type: ignore[attr-defined]
            _keeper.died = ""
            reports = runtestprotocol(item, nextitem=nextitem, log=False)
            if _keeper.died:
                _keeper.gone = _keeper.died.splitlines()[0]
                _keeper.drop()
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Note that the host died."""
    report = yield
    if call.excinfo and isinstance(call.excinfo.value, HostDiedError):
        _keeper.died = _keeper.died or call.excinfo.value.message
    return report


@pytest.fixture(scope="session", autouse=True)
def _closing() -> Iterator[None]:
    yield
    _keeper.drop()


@pytest.fixture
def nested() -> Iterator[Nested]:
    """The nested host, in which no guest is left afterwards, and devices have the drivers that they had."""
    try:
        image.check_tools()
        found = _keeper.get()
    except HostDiedError:
        raise
    except KvmctlError as error:
        cannot(error.message)
    before = found.drivers()
    yield found
    found.tidy(before)
