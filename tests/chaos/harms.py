"""What can be done to a process: the type of all harms, and the kills.

A harm has a text, such as `event=17`, which is its name in the summary and makes it again.
"""
import dataclasses
import os
import random
import resource
import signal
from typing import ClassVar

from tests.chaos.file_events import Event


class Harm:
  """What is done to a process; this one does nothing.

  Attributes:
    kill_after: seconds after which the parent kills the process, or None.
  """

  kill_after: float | None = None

  def start(self) -> None:
    """Runs in the process before the command."""

  def before(self, event: Event) -> None:
    """Runs in the process before each operation on a file; an error appears as that of the system.
    """

  def __str__(self):
    return '-'


@dataclasses.dataclass
class Kill(Harm):
  """SIGKILL, or a signal that nothing catches either, at one moment.

  Attributes:
    way: what `WAYS` lists.
    number: of the change to a file, counted from 1, at which it happens.
    amount: bytes, milliseconds or seconds, as `WAYS` says.
  """

  WAYS: ClassVar = {
      'event': 'before a change',
      'half': 'while files are written: at the first byte behind `amount`, from a change on',
      'after': '`amount` milliseconds after a change, in the middle of what C++ writes',
      'time': '`amount` seconds after the start'}
  way: str
  number: int = 0
  amount: float = 0
  _count: int = 0

  @classmethod
  def parse(cls, text: str) -> Harm:
    """Returns the harm that has this text."""
    if text == '-':
      return Harm()
    way, _, rest = text.partition('=')
    number, _, amount = rest.partition('+')
    return cls(way, int(number), float(amount or 0))

  @classmethod
  def draw(cls, rng: random.Random, events: int, seconds: float) -> 'Kill':
    """Draws a moment of a process that makes some changes in some seconds."""
    way = rng.choices(list(cls.WAYS), (5, 2, 2, 1))[0]
    if way == 'time':
      return cls(way, amount=round(rng.uniform(0, seconds), 3))
    amount = {'event': 0, 'half': round(2 ** rng.uniform(0, 11)), 'after': round(
        2 ** rng.uniform(-2, 6), 1)}[way]
    return cls(way, rng.randint(1, events), amount)

  def __str__(self):
    return f'{self.way}={self.number}' + (f'+{self.amount:g}' if self.amount else '')

  @property
  def kill_after(self) -> float | None:  # type: ignore[override]
    return self.amount if self.way == 'time' else None

  def start(self) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it.

  def before(self, event: Event) -> None:
    self._count += event.changes
    if not event.changes or self._count != self.number:
      return
    if self.way == 'event':
      os.kill(os.getpid(), signal.SIGKILL)
    if self.way == 'after':
      signal.setitimer(signal.ITIMER_REAL, self.amount / 1000)
    if self.way == 'half':  # The kernel writes up to the limit, and ends who writes more.
      resource.setrlimit(resource.RLIMIT_FSIZE, (int(self.amount),) * 2)
