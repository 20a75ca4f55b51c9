"""Faults of the system: it fails once, or for as long as a process runs; then it is well again.

A try is named `faults:KIND:HARM,HARM`, with what is done at each start: a kill first where the
fault is to meet a run that resumes. While the fault lasts, a command may succeed, or end with exit
code 1 or 2 and one line; afterwards it ends as if there had been none. So does a command that was
asked to stop by SIGTERM or SIGINT, which ends with exit code 75 or 130. Tries of two different
commands at the same time are named `faults:KIND:beside=COMMAND+SECONDS`, see `BESIDE`.
"""
import contextlib
import errno
import itertools
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import ClassVar

from tests.chaos import kinds, processes, remains
from tests.chaos.file_events import Event
from tests.chaos.harms import Harm
from tests.chaos.tries import Arena, Outcome, Reference
from tests.helpers.sweeps import PAIR

KINDS = kinds.KINDS


class Fault(Harm):
  """A fault that a program may notice."""

  WORDS: ClassVar[dict[str, str]] = {}
  codes = frozenset({0, 1, 2})


class Error(Fault):
  """An error, once, in the place of an operation on a file; at NAME+NUMBER, such as EIO+17."""

  WORDS: ClassVar[dict[str, str]] = {
      'read': 'when a file is opened to be read, or a folder is listed',
      'stat': 'when it is asked what a path is, or whether there is something',
      'change': 'when a file is opened to be written, renamed, removed, or a folder is made'}

  def read(self, where: str) -> None:
    self._name, _, number = where.partition('+')
    self._left = int(number)

  def before(self, event: Event) -> None:
    self._left -= event.does == self.word
    if not self._left:
      self._left = -1
      self.happens()
      number = getattr(errno, self._name)
      raise OSError(number, os.strerror(number), event.path)


class FewFiles(Fault):
  """No more files can be opened than SPARE, from the read NUMBER on, for the next LENGTH reads.

  The text is NUMBER+SPARE+LENGTH. Libraries in C++ meet this limit, too.
  """

  WORDS: ClassVar[dict[str, str]] = {'files': 'too many open files'}

  def read(self, where: str) -> None:
    self._number, self._spare, self._length = map(int, where.split('+'))
    self._count, self._before = 0, resource.getrlimit(resource.RLIMIT_NOFILE)

  def before(self, event: Event) -> None:
    self._count += event.does == 'read'
    if self._count == self._number:
      self.happens()
      used = max(map(int, os.listdir('/proc/self/fd'))) + 1
      resource.setrlimit(resource.RLIMIT_NOFILE, (used + self._spare, self._before[1]))
    elif self._count >= self._number + self._length:
      resource.setrlimit(resource.RLIMIT_NOFILE, self._before)


class LargeFiles(Fault):
  """No file can become larger than so many bytes, as under a quota or `ulimit -f`."""

  WORDS: ClassVar[dict[str, str]] = {'size': 'no large files'}

  def start(self, note: processes.Note) -> None:
    super().start(note)
    # A handler, too, lets the write fail, as it does in Python, which ignores the signal.
    signal.signal(signal.SIGXFSZ, lambda *_: self.happens())
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(self.where),) * 2)


class Full(Fault):
  """A disk with room for so many percent of what a run leaves."""

  WORDS: ClassVar[dict[str, str]] = {'space': 'a full disk'}

  @contextlib.contextmanager
  def around(self, folder: pathlib.Path, needed: int, refresh: Callable[[], object]):
    subprocess.run(['mount', '-t', 'tmpfs', 'tmpfs', folder], check=True)
    try:
      refresh()
      disk = os.statvfs(folder)
      used = (disk.f_blocks - disk.f_bfree) * disk.f_frsize
      size = used + max(1, (needed - used) * int(self.where) // 100)
      subprocess.run(['mount', '-o', f'remount,size={size}', folder], check=True)
      yield
    finally:
      subprocess.run(['umount', folder], check=True)

  def relieve(self, folder: pathlib.Path) -> None:
    subprocess.run(['mount', '-o', 'remount,size=1g', folder], check=True)

  def happened(self, ended: processes.Ended) -> bool:
    return bool(ended.code) or os.strerror(errno.ENOSPC) in ended.said

  @staticmethod
  def is_possible() -> bool:
    """Returns whether this process may mount file systems."""
    with tempfile.TemporaryDirectory() as folder:
      mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', folder],
                               capture_output=True, check=False).returncode == 0
      if mounted:
        subprocess.run(['umount', folder], check=True)
      return mounted


class NoLocks(Fault):
  """A file system that has no locks: `flock` fails with an error of this name."""

  WORDS: ClassVar[dict[str, str]] = {'locks': 'no flock'}

  def start(self, note: processes.Note) -> None:
    super().start(note)
    number = getattr(errno, self.where)

    def hook(name: str, args: tuple) -> None:
      if name == 'fcntl.flock':
        self.happens()
        raise OSError(number, os.strerror(number))

    sys.addaudithook(hook)

  def relieve(self, folder: pathlib.Path) -> None:
    """Removes temporary files: without locks nobody can tell whether they are left over."""
    for left in folder.rglob('.*.tmp'):
      left.unlink()


class Clock(Harm):
  """A clock that is so many seconds off."""

  WORDS: ClassVar[dict[str, str]] = {'clock': 'a wrong clock'}

  def start(self, note: processes.Note) -> None:
    super().start(note)
    self.happens()
    now, now_ns, seconds = time.time, time.time_ns, int(self.where)
    time.time = lambda: now() + seconds
    time.time_ns = lambda: now_ns() + seconds * 10**9


def _kill(rng: random.Random, reference: Reference) -> str:
  """Returns a kill behind which there is something to resume."""
  changes = reference.count('change')
  return f'event={rng.randint(changes // 4, changes)}'


def _read(rng: random.Random, reference: Reference) -> str:
  name = rng.choice(('EMFILE', 'EIO', 'ESTALE', 'ENOMEM', 'EACCES'))
  return f'{_kill(rng, reference)},read={name}+{rng.randint(1, reference.count("read"))}'


def _stat(rng: random.Random, reference: Reference) -> str:
  name = rng.choice(('EIO', 'ESTALE'))
  return f'{_kill(rng, reference)},stat={name}+{rng.randint(1, reference.count("stat"))}'


def _change(rng: random.Random, reference: Reference) -> str:
  name = rng.choice(('ENOSPC', 'EIO', 'EDQUOT', 'EROFS', 'ESTALE', 'ENOMEM', 'EMFILE'))
  return f'change={name}+{rng.randint(1, reference.count("change"))}'


def _files(rng: random.Random, reference: Reference) -> str:
  return (f'{_kill(rng, reference)},files={rng.randint(1, reference.count("read"))}'
          f'+{rng.randint(0, 3)}+{rng.randint(1, 8)}')


def _size(rng: random.Random, _: Reference) -> str:
  return f'size={2 ** rng.uniform(0, 15):.0f}'


def _space(rng: random.Random, _: Reference) -> str:
  return f'space={rng.randint(1, 105)}'


def _locks(rng: random.Random, reference: Reference) -> str:
  """Without locks a process starts, or is killed and resumes."""
  locks = f'locks={rng.choice(("ENOSYS", "ENOTSUP", "ENOLCK"))}'
  return rng.choice((locks, f'{locks};{_kill(rng, reference)},{locks}'))


def _clock(rng: random.Random, reference: Reference) -> str:
  return f'{_kill(rng, reference)},clock={rng.choice((-3600, 3600))}'


def _interrupt(rng: random.Random, reference: Reference) -> str:
  """A process is stopped as it starts, or as it resumes."""
  stop = f'interrupt={rng.randint(1, len(reference.events))}'
  return rng.choice((stop, f'{_kill(rng, reference)},{stop}'))


def _term(rng: random.Random, reference: Reference) -> str:
  return _interrupt(rng, reference).replace('interrupt', 'term')


# How to draw the harms of a fault, and its share of the tries.
DRAWS: dict[str, tuple[Callable[[random.Random, Reference], str], int]] = {
    'read': (_read, 5), 'stat': (_stat, 3), 'change': (_change, 6), 'files': (_files, 3),
    'size': (_size, 3), 'space': (_space, 5), 'locks': (_locks, 2), 'clock': (_clock, 2),
    'term': (_term, 5), 'interrupt': (_interrupt, 3)}
LEVELS = [f'faults:phases:space={percent}' for percent in range(5, 105, 5)]


def _itself(kind: kinds.Kind, place: kinds.Place) -> kinds.Command:
  return kind.command(place)


def _aside(place: kinds.Place) -> pathlib.Path:
  """Returns the folder of a report that is made beside a run."""
  return place.folder.parent / 'aside'


def _report(kind: kinds.Kind, place: kinds.Place) -> kinds.Command:
  return kinds.Command('report', (str(place.work), f'--output={_aside(place)}'))


def _teacher(kind: kinds.Kind, place: kinds.Place) -> kinds.Command:
  arguments = kind.command(place).arguments
  workdir = place.work / PAIR.partition('/')[0]
  return kinds.Command('main', (*(
      f'--workdir={workdir}' if argument.startswith('--workdir=') else argument
      for argument in arguments
      if not argument.startswith(('--methods', '--seeds', '--together'))),
      '--config.phases=teacher'), after=workdir / 'teacher' / 'checkpoints')


_MAIN, _SWEEPS = ('phases', 'cache', 'staged', 'methods'), ('sweep', 'two_sweeps', 'together')
# A second command, the codes with which it and the kind's own may end, and kinds beside which it
# runs.
BESIDE: dict[str, tuple[Callable[[kinds.Kind, kinds.Place], kinds.Command],
                        frozenset[int], frozenset[int], tuple[str, ...]]] = {
    'main': (_itself, frozenset({0, 2}), frozenset({0, 2}), _MAIN),
    'sweep': (_itself, frozenset({0}), frozenset({0}), _SWEEPS),
    'same_report': (_itself, frozenset({0}), frozenset({0}), ('report',)),
    'report': (_report, frozenset({0, 2}), frozenset({0}), (*_MAIN, *_SWEEPS)),
    'teacher': (_teacher, frozenset({2}), frozenset({0}), ('slow_teacher',)),
}


class Later(Harm):
  """A start so many seconds later."""

  WORDS: ClassVar[dict[str, str]] = {'later': 'a start some seconds later'}

  def start(self, note: processes.Note) -> None:
    super().start(note)
    self.happens()
    time.sleep(float(self.where))


def plan(arena: Arena, chosen: list[str], seed: int) -> Iterator[str]:
  """Yields the names of tries: of each fault its part, each with every kind in turn."""
  names = [name for name in chosen if KINDS[name].share]
  rng = random.Random(f'{seed}:faults')
  full = Full.is_possible()
  levels = [level for level in LEVELS if full and level.split(':')[1] in names]
  streams: list[tuple[Iterator[str | None], int]] = [(_draws(arena, word, names, rng), weight)
             for word, (_, weight) in DRAWS.items() if full or word != 'space']
  streams += [(_besides(arena, chosen, rng), 4), (iter(levels), 3)]
  # In turns, so that a few tries are of different faults.
  turns = itertools.cycle([stream for turn in range(max(weight for _, weight in streams))
                           for stream, weight in streams if turn < weight])
  seen: set[str] = set()
  misses = 0
  while misses < 1000:
    name = next(next(turns), None)
    if name is None or name in seen:
      misses += 1
    else:
      seen.add(name)
      yield name


def _draws(
    arena: Arena, word: str, names: list[str], rng: random.Random) -> Iterator[str | None]:
  draw, _ = DRAWS[word]
  for name in itertools.cycle(names):
    kind = KINDS[name]
    # Without locks there may be no second process. SIGTERM kills a report, which does not resume;
    # a run that has fewer lines than steps logs where it is stopped.
    if (word == 'locks' and kind.processes > 1) or (word == 'term' and name in ('report', 'lines')):
      yield None
      continue
    alone = draw(rng, arena.reference(kind))
    yield f'faults:{name}:' + ','.join(
        '&'.join([start, *['-'] * (kind.processes - 1)]) for start in alone.split(','))


def _besides(arena: Arena, names: list[str], rng: random.Random) -> Iterator[str | None]:
  for word, (_, _, _, those) in itertools.cycle(BESIDE.items()):
    for name in sorted(set(names) & set(those)) or (None,):
      if name is None:
        yield None
      else:
        # 'teacher' meets the sweep in its training, which soon begins.
        longest = 0.2 if word == 'teacher' else arena.reference(KINDS[name]).seconds
        seconds = rng.choice((0, rng.uniform(0, longest)))
        yield f'faults:{name}:beside={word}+{seconds:.2f}'


def attempt(arena: Arena, name: str) -> Outcome:
  """Makes the try of this name."""
  _, kind_name, what = name.split(':')
  kind = KINDS[kind_name]
  if not what.startswith('beside='):
    return arena.attempt(kind, what)
  word, _, seconds = what.removeprefix('beside=').partition('+')
  make, its_codes, codes, _ = BESIDE[word]
  place, outcome = arena.ground.fresh(kind), Outcome()
  own, other = Harm(), Later('later', seconds)
  shutil.rmtree(_aside(place), ignore_errors=True)
  ended = arena.run(kind, [own, other], [kind.command(place), make(kind, place)])
  outcome.add(ended[0], own, codes)
  outcome.add(ended[1], other, its_codes)
  if all(each.code for each in ended):
    outcome.problems.append(f'nobody: {outcome.harmed}')
  if word == 'report' and not ended[1].code:
    outcome.problems += processes.call(remains.report_problems, _aside(place))
  return arena.finish(kind, outcome)
