"""SIGTERM and Ctrl-C as requests: finish the step, save, then leave.

Contents: `stop_requests`, `StopRequests`.

Example:

    with stop_requests() as stop:
        for step in range(steps):
            ...
            if stop.requested:
                save()
                stop.leave('saved')
"""
import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from absl import logging


class StopRequests:
    """Which signal has come in, if any."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    @property
    def requested(self) -> bool:
        """Whether the run has been asked to stop."""
        return self.signal is not None

    def receive(self, number: int, _: FrameType | None) -> None:
        """The signal handler; a second Ctrl-C does not wait."""
        if number == signal.SIGINT and self.requested:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
        logging.warning('%s: stopping after this step and saving%s', self.signal.name,
                        '; press Ctrl-C again to stop at once' if number == signal.SIGINT else '')

    def leave(self, message: str) -> NoReturn:
        """Ends the run in the way that the signal asks for.

        Raises:
          KeyboardInterrupt: after Ctrl-C.
          SystemExit: after SIGTERM, with status 143.
        """
        logging.warning(message)
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt(message)
        raise SystemExit(128 + signal.SIGTERM)


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequests]:
    """Collects SIGTERM and Ctrl-C while the block runs; outside the main thread nothing is collected."""
    requests = StopRequests()
    if threading.current_thread() is not threading.main_thread():
        yield requests
        return
    before = {number: signal.signal(number, requests.receive) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
