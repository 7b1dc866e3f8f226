"""Ctrl-C and SIGTERM as something that long work can put off until it has saved what it has."""

import signal
import threading
from types import FrameType, TracebackType


class Stopped(KeyboardInterrupt):
    """The user or the system asked to stop; `signum` says how, and 128 + signum is the exit status."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Interruption:
    """A context in which SIGINT and SIGTERM raise `Stopped`: at once or, while `deferred`, when `check` is called.

    A second signal raises at once in any case. Outside the main thread, where Python delivers no signals, it does
    nothing.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.signum: int | None = None
        self.deferred = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.signum is not None

    def check(self) -> None:
        """Raises `Stopped` if a signal has come."""
        if self.signum is not None:
            raise Stopped(self.signum)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        repeated, self.signum = self.requested, signum
        if repeated or not self.deferred:
            raise Stopped(signum)
