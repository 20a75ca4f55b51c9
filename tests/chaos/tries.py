"""Tries: a kind of run is harmed, then runs again unharmed; what is then there is compared."""
import contextlib
import dataclasses
import signal
from collections.abc import Sequence

from tests.chaos import file_events, harms as harms_lib, kinds, processes, remains
from tests.chaos.harms import HAPPENED, Harm

TRACEBACK = 'Traceback (most recent call last):'
GOOD = 'as uninterrupted'  # So begins the outcome of every try that has no problems.


@dataclasses.dataclass(frozen=True)
class Reference:
  """What an undisturbed run does, and leaves.

  Attributes:
    remains: what it leaves.
    events: the operations on files of its first process.
    seconds: how long it takes.
    bytes: what it needs on a disk.
  """

  remains: remains.Remains
  events: tuple[file_events.Event, ...]
  seconds: float
  bytes: int

  def count(self, does: str) -> int:
    """Returns how many of the operations do what `Event.does` says."""
    return sum(event.does == does for event in self.events)


@dataclasses.dataclass
class Outcome:
  """How a try has ended.

  Attributes:
    problems: what is wrong, a line each, which begins with its kind and a colon.
    harmed: for each process that was harmed, how it ended and the last that it did to a file.
    killed: how many of these were killed.
    seconds: how long all processes took.
    happened: for each harm whether it has happened.
  """

  problems: list[str] = dataclasses.field(default_factory=list)
  harmed: list[str] = dataclasses.field(default_factory=list)
  killed: int = 0
  seconds: float = 0
  happened: list[bool] = dataclasses.field(default_factory=list)

  def add(self, ended: processes.Ended, harm: Harm, codes: frozenset[int]) -> None:
    """Adds how a process that was harmed has ended, which may be with these exit codes."""
    if str(harm) != '-':
      self.happened.append(harm.happened(ended))
    changes = [event for event in _events(ended) if event.changes]
    said = ended.said.splitlines()
    self.harmed.append(
        f'{harm}: exit code {ended.code} after {changes[-1] if changes else "no change"}; '
        f'{said[-1][:300] if said else "nothing said"}')
    self.seconds += ended.seconds
    self.killed += not ended.hung and -ended.code in harm.signals
    self.problems += problems_of(ended, codes, harm.signals)

  def __str__(self):
    if self.problems:
      return ', '.join(sorted({problem.partition(':')[0] for problem in self.problems}))
    if all(self.happened):
      return GOOD
    return f'{GOOD}, harmed in part' if any(self.happened) else f'{GOOD}, unharmed'


class Arena:
  """Runs kinds on a ground, and compares them with undisturbed runs."""

  def __init__(self, ground: kinds.Ground):
    self.ground = ground
    self._references: dict[str, Reference] = {}

  def reference(self, kind: kinds.Kind) -> Reference:
    """Returns what an undisturbed run of a kind does and leaves.

    Raises:
      RuntimeError: two of them differ; then nothing can be compared with them.
    """
    if kind.name not in self._references:
      self._references[kind.name] = self._undisturbed_twice(kind)
    return self._references[kind.name]

  def _undisturbed_twice(self, kind: kinds.Kind) -> Reference:
    found = [self._undisturbed(kind) for _ in range(2)]
    if other := remains.differences(found[0].remains, found[1].remains):
      raise RuntimeError(f'{kind.name}: two undisturbed runs differ: {other}')
    return found[1]  # The first one had to compile.

  def _undisturbed(self, kind: kinds.Kind) -> Reference:
    place = self.ground.fresh(kind)
    ended = self.run(kind, [Harm()] * kind.processes)
    if problems := [problem for one in ended for problem in problems_of(one, frozenset({0}))]:
      raise RuntimeError(f'{kind.name}: an undisturbed run fails: {problems}')
    return Reference(
        self._remains(kind), _events(ended[0]), max(one.seconds for one in ended),
        sum(-(-path.stat().st_size // 4096) * 4096 for path in place.folder.rglob('*')))

  def _remains(self, kind: kinds.Kind) -> remains.Remains:
    return processes.call(remains.collect, self.ground.place(kind).folder)

  def run(self, kind: kinds.Kind, harms: Sequence[Harm],
          commands: Sequence[kinds.Command] = ()) -> list[processes.Ended]:
    """Runs the command of a kind, or others, one for each harm, at the same time."""
    place = self.ground.place(kind)
    commands = commands or [kind.command(place)] * len(harms)
    return processes.run(
        *(_body(place, command, harm) for command, harm in zip(commands, harms, strict=True)),
        kill_after=tuple(harm.kill_after for harm in harms))

  def attempt(self, kind: kinds.Kind, starts: str) -> Outcome:
    """Starts a kind with the harms of each start, `HARM&HARM,HARM&HARM`; then undisturbed."""
    needed = self.reference(kind).bytes
    outcome, place = Outcome(), self.ground.fresh(kind)
    with contextlib.ExitStack() as stack:
      for start in starts.split(','):
        harms = [harms_lib.parse(text) for text in start.split('&')]
        for harm in harms:
          stack.enter_context(harm.around(place.folder, needed, lambda: self.ground.fresh(kind)))
        # A process tells what has failed in another one; another one that stops is no failure.
        codes = frozenset().union(*(harm.codes for harm in harms)) & {0, 1, 2}
        for ended, harm in zip(self.run(kind, harms), harms, strict=True):
          outcome.add(ended, harm, harm.codes | codes)
          harm.relieve(place.folder)
        outcome.problems += [f'moved to damaged: {path}' for path in place.folder.rglob('damaged')]
      return self.finish(kind, outcome)

  def finish(self, kind: kinds.Kind, outcome: Outcome) -> Outcome:
    """Runs a kind once more, undisturbed, and adds what is wrong with what it leaves."""
    for ended in self.run(kind, [Harm()] * kind.processes):
      outcome.problems += [problem.replace(':', ' afterwards:', 1)
                           for problem in problems_of(ended, frozenset({0}))]
      outcome.seconds += ended.seconds
    whole = self.reference(kind).remains
    try:
      found = remains.differences(whole, self._remains(kind))
    except RuntimeError as error:  # A file that cannot be read is what is looked for here.
      found = [f'unreadable: {str(error).splitlines()[-1]}']
    # What many tries have in common does not hide the others.
    outcome.problems += sorted(found, key=lambda line: line.startswith(('left over', 'events')))
    return outcome


def _body(place: kinds.Place, command: kinds.Command, harm: Harm) -> processes.Body:
  def body(note: processes.Note) -> int:
    def react(event: file_events.Event) -> None:
      note(str(event))
      harm.before(event)

    harm.start(note)
    file_events.watch(str(place.folder), react)
    return command.execute(place)

  return body


def _events(ended: processes.Ended) -> tuple[file_events.Event, ...]:
  """Returns the operations on files of a process."""
  return tuple(file_events.Event.parse(note) for note in ended.notes
               if not note.startswith(HAPPENED))


def problems_of(ended: processes.Ended, codes: frozenset[int],
                signals: frozenset[int] = frozenset()) -> list[str]:
  """Returns what is wrong with how a process has ended.

  Args:
    ended: how it has ended.
    codes: the exit codes with which it may end.
    signals: the signals that may end it.
  """
  said = ended.said.splitlines()
  last = said[-1][:400] if said else 'nothing said'
  if ended.hung:
    return [f'hangs: {last}']
  if ended.code < 0 and -ended.code not in signals:
    return [f'crash: {signal.Signals(-ended.code).name}; {last}']
  if TRACEBACK in ended.said:
    _, _, rest = ended.said.partition(TRACEBACK)
    return [f'traceback: {" / ".join(rest.splitlines()[:60])[:3000]}']
  if ended.code >= 0 and ended.code not in codes:
    return [f'exit code {ended.code}: {last}']
  if ended.code > 0 and sum(line.startswith('kdih: ') for line in said) != 1:
    return [f'no line: {last}']
  # Nothing was damaged.
  return [f'called damaged: {line[:400]}' for line in said if 'damaged' in line]
