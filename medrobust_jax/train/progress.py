"""How far training is, how fast, and how long it will take.

A bar on a terminal; elsewhere (a log file, a batch job) a plain line now and then.

Contents: `Progress`.

Example:

    with Progress(start=0, steps=1000) as progress:
        progress.advance(images=128)
        speed = progress.report(1, {'loss': 0.5})        # images per second since the last report
"""
import math
import sys
import time
from collections.abc import Mapping
from typing import Self

from tqdm import tqdm

from medrobust_jax.parallel import hosts

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """The progress of a run, on the first process only.

    Args:
      start: the step that the run goes on from.
      steps: the step that it ends with.
      show: True for a bar, False for silence, None for a bar on a terminal and lines elsewhere.
    """

    def __init__(self, *, start: int, steps: int, show: bool | None = None) -> None:
        bar = sys.stderr.isatty() if show is None else show
        quiet = not hosts.is_primary()
        self._lines = show is None and not bar and not quiet
        self._bar = tqdm(initial=start, total=steps, unit='step', disable=quiet or not bar, dynamic_ncols=True)
        self._steps = steps
        self._since = time.perf_counter()
        self._images = self._count = 0
        self._rate = self._seconds_per_step = float('nan')
        self._last_line = -SECONDS_BETWEEN_LINES
        self._compiling = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, images: int) -> None:
        """One step more, of so many images."""
        self._bar.update(1)
        if self._compiling:  # the first step's time is the compiler's
            self._compiling = False
            self.restart_clock()
            return
        self._images += images
        self._count += 1

    def restart_clock(self) -> None:
        """Leaves out the time since the last report, e.g. an evaluation's."""
        self._since, self._images, self._count = time.perf_counter(), 0, 0

    def report(self, step: int, values: Mapping[str, float]) -> float:
        """Shows `values`; returns the images per second since the last report (NaN if unknown)."""
        seconds = time.perf_counter() - self._since
        if self._count:
            self._rate, self._seconds_per_step = self._images / seconds, seconds / self._count
        self.restart_clock()
        text = '  '.join(f'{name} {value:.4g}' for name, value in values.items())
        if math.isfinite(self._rate):
            text += f'  {self._rate:.4g} images/s'
        self._bar.set_postfix_str(text, refresh=False)
        if self._lines and time.perf_counter() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.perf_counter()
            left = self._seconds_per_step * (self._steps - step)
            remaining = f'  {tqdm.format_interval(left)} left' if math.isfinite(left) else ''
            self.say(f'step {step}/{self._steps}  {text}{remaining}')
        return self._rate

    def say(self, text: str) -> None:
        """A line of its own, above the bar; silent where nothing is shown."""
        if self._lines or not self._bar.disable:
            tqdm.write(text, file=sys.stderr)
            sys.stderr.flush()
