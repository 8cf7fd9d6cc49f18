"""Stopping on request: SIGTERM and Ctrl-C end a run at a point that it can continue from."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(BaseException):
    """The run was asked to stop. Not an ``Exception``: nothing that handles errors may take it for one."""

    def __init__(self, by: signal.Signals) -> None:
        super().__init__(by)

    def __str__(self) -> str:
        return self.by.name

    @property
    def by(self) -> signal.Signals:
        return signal.Signals(self.args[0])

    @property
    def exit_code(self) -> int:
        """The shell's convention: 128 plus the number of the signal."""
        return 128 + self.by


class Stop:
    """Turns the first signal into :class:`Stopped`: at once, or when the block that defers it ends.

    Every file of a run is whole at any moment, so stopping at once is safe; a stop is deferred to save the work in
    progress. A second signal does not wait.
    """

    def __init__(self) -> None:
        self.by: signal.Signals | None = None
        """The signal that has come."""
        self._listening = False
        self.deferred = False
        """While this is set, a signal waits for :meth:`check`."""

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """While the block runs, SIGTERM and SIGINT stop it. Without effect outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in SIGNALS}
        self._listening = True
        self.listen()
        try:
            yield
        finally:
            self._listening = False
            for number, handler in before.items():
                signal.signal(number, handler)

    def listen(self) -> None:
        """Take the signals over, from Lightning's handlers say, which talk to other ranks while they handle them."""
        for number in SIGNALS if self._listening else ():
            signal.signal(number, self._receive)

    def ask(self, by: signal.Signals) -> None:
        """As the first signal does; without effect after one."""
        if self.by is None:
            self.by = by
            if not self.deferred:
                self.check()

    @property
    def asked(self) -> bool:
        """Whether a signal has come."""
        return self.by is not None

    def check(self) -> None:
        """Raise :class:`Stopped` if a signal has come."""
        if self.by is not None:
            raise Stopped(self.by)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.by is not None:
            self.check()
        self.ask(signal.Signals(number))
