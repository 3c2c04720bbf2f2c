"""`kvmctl top` on a terminal: frames come from a thread, keys from the terminal, and the screen is left as it was."""

from __future__ import annotations

import codecs
import contextlib
import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live

from kvmctl.cli.top_table import ASCII, BLOCKS, Glyphs, screen
from kvmctl.cli.top_view import View, is_cut_off, keys
from kvmctl.model.errors import KvmctlError, UnreachableError

if TYPE_CHECKING:
    from kvmctl.control.top import Watch
    from kvmctl.model.top import TopFrame

FIRST_SECONDS = 0.5
"""From the first frame, which has no rates, to the second."""
_REST_OF_KEY = 0.03
"""Seconds in which the rest of a key comes that is sent as several characters."""
_CLOSING = 1.0
"""Seconds that a connection has to be closed."""
_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Gatherer:
    """Looks at the hypervisor again and again in a thread: it may take seconds to answer, and keys are not to wait."""

    def __init__(self, watch: Watch, reopen: Callable[[], Watch], every: float, wake: Callable[[], None]) -> None:
        """`reopen` is how to look at a hypervisor that was gone; `wake` is called when there is something new."""
        self.frame: TopFrame | None = None
        self.said = ""
        self.failure: BaseException | None = None
        """What nobody expected."""
        self._watch: Watch | None = watch
        self._reopen, self._every, self._wake = reopen, every, wake
        self._ended = Event()
        # Where it waits for a hypervisor that hangs, it must not keep the process.
        self._thread = Thread(target=self._run, name="top", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def end(self) -> None:
        """Take no more frames, and close the connection: in the thread, since that too waits for one that hangs."""
        self._ended.set()
        self._thread.join(_CLOSING)

    def _run(self) -> None:
        pause = min(FIRST_SECONDS, self._every)
        try:
            while not self._ended.is_set():
                self._look()
                self._wake()
                self._ended.wait(pause)
                pause = self._every
        except BaseException as error:  # it is raised again where it is seen
            self.failure = error
            self._wake()
        if self._watch is not None:
            self._watch.hypervisor.close()

    def _look(self) -> None:
        try:
            if self._watch is None:
                self._watch = self._reopen()
            self.frame = self._watch.frame()
        except UnreachableError as error:
            self._watch = None
            self.said = f"{error.message}; trying again"
        except KvmctlError as error:
            self.said = error.message
        else:
            self.said = ""


def plain(frame: TopFrame, view: View, width: int, encoding: str) -> str:
    """One frame as text, without colour."""
    console = Console(width=width, color_system=None, force_terminal=False, legacy_windows=False)
    with console.capture() as captured:
        console.print(screen(frame, view, width, None, glyphs(encoding)))
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def glyphs(encoding: str) -> Glyphs:
    """What bars are made of where text is written in this encoding."""
    try:
        "…".join(getattr(BLOCKS, name) for name in BLOCKS.__slots__).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return BLOCKS


def run(watch: Watch, reopen: Callable[[], Watch], every: float, view: View) -> None:
    """Show frames until the user ends it, then close what was watched.

    Raises KeyboardInterrupt for Ctrl-C and the signals that end a program.
    """
    source = sys.stdin.fileno()
    woken, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    gatherer = Gatherer(watch, reopen, every, lambda: _wake(waker))
    gatherer.start()
    try:
        shown = _Shown(gatherer, view, source, woken)
        with _signals(waker):
            while shown.until_left() == "suspend":
                # The terminal is the shell's now; this goes on when the shell says so.
                os.kill(os.getpid(), signal.SIGSTOP)
    finally:
        gatherer.end()


def _wake(waker: int) -> None:
    with contextlib.suppress(BlockingIOError):  # enough is in the pipe
        os.write(waker, b"\0")


@contextlib.contextmanager
def _signals(waker: int) -> Iterator[None]:
    """Let a new size of the terminal, and Ctrl-Z, wake the loop; let what ends a program end it in order."""
    before: dict[signal.Signals, Any] = {}
    for number in _ENDING:
        before[number] = signal.signal(number, signal.default_int_handler)
    for number in (signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT):
        before[number] = signal.signal(number, lambda _number, _frame: None)
    former = signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(former)
        for number, handler in before.items():
            signal.signal(number, handler)


class _Shown:
    """What is on the terminal, and what is typed there."""

    def __init__(self, gatherer: Gatherer, view: View, source: int, woken: int) -> None:
        self._gatherer, self._view, self._source, self._woken = gatherer, view, source, woken
        self._console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
        self._glyphs = glyphs(sys.stdout.encoding)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def until_left(self) -> str:
        """Show frames and take keys: `quit`, or `suspend`. The terminal is then as it was."""
        before = termios.tcgetattr(self._source)
        live = Live(
            self._drawn(),
            console=self._console,
            screen=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        try:
            # Not flushed: what was typed while this started counts.
            tty.setcbreak(self._source, termios.TCSADRAIN)
            live.start(refresh=True)
            return self._loop(live)
        finally:
            self._put_back(live, before)

    def _put_back(self, live: Live, before: list[Any]) -> None:
        """A second Ctrl-C, of somebody who is impatient, is not to leave half of it undone."""
        handlers = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, *_ENDING)}
        try:
            with contextlib.suppress(OSError):  # the terminal may be gone
                live.stop()
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._source, termios.TCSAFLUSH, before)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _loop(self, live: Live) -> str:
        while True:
            ready = select.select([self._source, self._woken], [], [])[0]
            if self._woken in ready and signal.SIGTSTP in os.read(self._woken, 4096):
                return "suspend"
            if self._source in ready and self._typed():
                return "quit"
            if self._gatherer.failure is not None:
                raise self._gatherer.failure
            live.update(self._drawn(), refresh=True)

    def _typed(self) -> bool:
        """Whether what was typed ends it; so does a terminal that is gone."""
        data = self._read()
        text = self._decoder.decode(data)
        while is_cut_off(text) and select.select([self._source], [], [], _REST_OF_KEY)[0]:
            more = self._read()
            if not more:
                break
            text += self._decoder.decode(more)
        return not data or any(self._view.press(key) for key in keys(text))

    def _read(self) -> bytes:
        try:
            return os.read(self._source, 4096)
        except OSError:
            return b""

    def _drawn(self) -> Any:
        width, height = self._console.size
        found = self._gatherer
        said = found.said or ("" if found.frame else "looking at the guests ...")
        return screen(found.frame, self._view, width, height, self._glyphs, said)
