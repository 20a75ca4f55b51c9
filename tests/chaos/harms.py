"""What can be done to a process: the type of all harms, the kills, and what asks it to stop.

A harm has a text, such as `event=17`, which names it in the summary and makes it again.
"""
import contextlib
import os
import pathlib
import random
import resource
import signal
from collections.abc import Callable
from typing import ClassVar

from tests.chaos import processes
from tests.chaos.file_events import Event

HAPPENED = 'happened '  # What the notes begin with that say so of a harm.

_HARMS: dict[str, type['Harm']] = {}


class Harm:
  """What is done to a process; this one does nothing.

  Args:
    word: one of `WORDS`.
    where: the rest of the text, which the class explains.

  Attributes:
    WORDS: what the texts of a class begin with, and what each does.
    codes: the exit codes with which the process may end.
    signals: the signals that may end it instead, once the harm has happened.
    kill_after: seconds after which the parent kills the process, or None.
  """

  WORDS: ClassVar[dict[str, str]] = {'-': 'nothing'}
  codes: frozenset[int] = frozenset({0})
  signals: frozenset[int] = frozenset()
  kill_after: float | None = None

  def __init__(self, word: str = '-', where: str = ''):
    self.word, self.where = word, where
    self.read(where)

  def __init_subclass__(cls):
    _HARMS.update(dict.fromkeys(cls.WORDS, cls))

  def read(self, where: str) -> None:
    """Reads the rest of the text."""

  def start(self, note: processes.Note) -> None:
    """Runs in the process, before the command; `note` notes what the parent is to know."""
    self._note = note

  def before(self, event: Event) -> None:
    """Runs in the process, before each operation on a file; may raise an error in its place."""

  def around(self, folder: pathlib.Path, needed: int, refresh: Callable[[], object]
             ) -> contextlib.AbstractContextManager:
    """Runs in the parent: the context is entered before the process starts, and left after the try.

    Args:
      folder: in which the process works.
      needed: bytes that an undisturbed run leaves there.
      refresh: puts into the folder what is there before the first command.
    """
    return contextlib.nullcontext()

  def relieve(self, folder: pathlib.Path) -> None:
    """Runs in the parent, once the process has ended: the fault is gone."""

  def happens(self) -> None:
    """Tells the parent, from the process, that the harm happens."""
    self._note(f'{HAPPENED}{self}')

  def happened(self, ended: processes.Ended) -> bool:
    """Returns whether the harm has happened to a process that has ended so."""
    return f'{HAPPENED}{self}' in ended.notes

  def __str__(self):
    return f'{self.word}={self.where}' if self.where else self.word


_HARMS['-'] = Harm


def parse(text: str) -> Harm:
  """Returns the harm that has this text; `;` stands between several that are done at once."""
  if ';' in text:
    return Several(text)
  word, _, where = text.partition('=')
  return _HARMS[word](word, where)


class Several(Harm):
  """Several harms to one process at once."""

  WORDS: ClassVar[dict[str, str]] = {}

  def __init__(self, text: str):
    super().__init__(text)
    self._harms = [parse(part) for part in text.split(';')]
    self.codes = frozenset().union(*(harm.codes for harm in self._harms))
    self.signals = frozenset().union(*(harm.signals for harm in self._harms))
    self.kill_after = min((harm.kill_after for harm in self._harms if harm.kill_after is not None),
                          default=None)

  def start(self, note: processes.Note) -> None:
    for harm in self._harms:
      harm.start(note)

  def before(self, event: Event) -> None:
    for harm in self._harms:
      harm.before(event)

  @contextlib.contextmanager
  def around(self, folder: pathlib.Path, needed: int, refresh: Callable[[], object]):
    with contextlib.ExitStack() as stack:
      for harm in self._harms:
        stack.enter_context(harm.around(folder, needed, refresh))
      yield

  def relieve(self, folder: pathlib.Path) -> None:
    for harm in self._harms:
      harm.relieve(folder)

  def happened(self, ended: processes.Ended) -> bool:
    return all(harm.happened(ended) for harm in self._harms)


class Kill(Harm):
  """SIGKILL, or a signal that nothing catches either; at NUMBER+AMOUNT.

  NUMBER counts the process's changes to files, from 1; for AMOUNT see `WORDS`.
  """

  WORDS: ClassVar[dict[str, str]] = {
      'event': 'before a change to a file',
      'half': 'when a file grows beyond AMOUNT bytes, after a change',
      'after': 'AMOUNT milliseconds after a change, in the middle of what C++ writes',
      'time': 'AMOUNT seconds after the start'}
  _SIGNALS: ClassVar[dict[str, int]] = {
      'event': signal.SIGKILL, 'half': signal.SIGXFSZ, 'after': signal.SIGALRM,
      'time': signal.SIGKILL}

  def read(self, where: str) -> None:
    number, _, amount = where.partition('+')
    self.signals = frozenset({self._SIGNALS[self.word]})
    self._number, self._amount, self._count = int(number), float(amount or 0), 0
    if self.word == 'time':
      self.kill_after = self._amount

  @classmethod
  def draw(cls, rng: random.Random, changes: int, seconds: float) -> 'Kill':
    """Draws a moment of a process that makes some changes in some seconds."""
    word = rng.choices(list(cls.WORDS), (5, 2, 2, 1))[0]
    number = rng.randint(1, changes)
    return cls(word, {
        'event': f'{number}',
        'half': f'{number}+{2 ** rng.uniform(0, 11):.0f}',
        'after': f'{number}+{2 ** rng.uniform(-2, 6):.1f}',
        'time': f'0+{rng.uniform(0, seconds):.3f}'}[word])

  def start(self, note: processes.Note) -> None:
    super().start(note)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it.

  def before(self, event: Event) -> None:
    self._count += event.changes
    if not event.changes or self._count != self._number:
      return
    if self.word == 'event':
      os.kill(os.getpid(), signal.SIGKILL)
    if self.word == 'after':
      signal.setitimer(signal.ITIMER_REAL, self._amount / 1000)
    if self.word == 'half':  # The kernel writes up to the limit, and ends who writes more.
      resource.setrlimit(resource.RLIMIT_FSIZE, (int(self._amount),) * 2)

  def happened(self, ended: processes.Ended) -> bool:
    return not ended.hung and -ended.code in self.signals


class Stop(Harm):
  """A signal that asks a process to stop, before its operation NUMBER on files, of any kind."""

  WORDS: ClassVar[dict[str, str]] = {'term': 'SIGTERM', 'interrupt': 'SIGINT'}

  def read(self, where: str) -> None:
    self._left = int(where)
    self._signal, code = {
        'term': (signal.SIGTERM, 75), 'interrupt': (signal.SIGINT, 130)}[self.word]
    self.codes = frozenset({0, code})

  def before(self, event: Event) -> None:
    self._left -= 1
    if not self._left:
      self.happens()
      os.kill(os.getpid(), self._signal)
