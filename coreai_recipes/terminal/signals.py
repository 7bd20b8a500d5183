"""Being asked to stop: Ctrl-C, a terminal that hangs up, `kill`. A leaf, and light: it is imported first."""

import os
import signal
from types import FrameType

SIGNALS = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "terminated",
    signal.SIGHUP: "hung up",
}


class Signals:
    """The first signal raises KeyboardInterrupt, which unwinds whatever runs: a build removes what it has written.

    A second one meets that clean-up and waits for it; a third ends the process at once, as any does once there is
    nothing left to unwind (`leave`). A signal that was ignored before (nohup, a job in the background) stays so.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._count = 0
        self._leaves = False

    def take(self) -> None:
        """Answer the signals from now on."""
        self.received, self._count, self._leaves = None, 0, False
        for number in SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                try:
                    signal.signal(number, self._answer)
                except ValueError:  # not the main thread: the signals are somebody else's
                    return

    def forgive(self) -> None:
        """A Ctrl-C that was meant for a part of the work has been answered; raises again what means all of it."""
        if self.received is not signal.SIGINT:
            raise KeyboardInterrupt
        self.received, self._count = None, 0

    def leave(self) -> None:
        """From now on there is nothing to unwind."""
        self._leaves = True

    @property
    def said(self) -> str:
        return SIGNALS[self.received or signal.SIGINT]

    @property
    def status(self) -> int:
        """What a shell reports of a process that such a signal has ended."""
        return 128 + int(self.received or signal.SIGINT)

    def _answer(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        if self._leaves and _is_inside_a_program(frame):
            raise KeyboardInterrupt  # whoever called `main` goes on, as tests do
        if self._leaves or self._count > 2:
            os._exit(128 + number)
        if self._count == 1:
            self.received = signal.Signals(number)
            raise KeyboardInterrupt


def _is_inside_a_program(frame: FrameType | None) -> bool:
    """Whether the outermost frame is a program's: while Python exits it is that of a last callback."""
    while frame is not None and frame.f_back is not None:
        frame = frame.f_back
    return frame is not None and (frame.f_code.co_name == "<module>" or frame.f_globals.get("__name__") == "runpy")


signals = Signals()  # a process has one set of them
