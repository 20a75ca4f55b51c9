"""Tries: a kind of run is harmed, then runs again unharmed; what is then there is compared."""
import dataclasses
import functools
import re
from collections.abc import Sequence

from tests.chaos import file_events, kinds, processes, remains
from tests.chaos.harms import Harm

GOOD = 'as uninterrupted'


@dataclasses.dataclass(frozen=True)
class Reference:
  """What an undisturbed run does, and leaves.

  Attributes:
    remains: what it leaves.
    events: the operations on files of its first process, each 'NAME PATH'.
    seconds: how long it takes.
  """

  remains: remains.Remains
  events: list[str]
  seconds: float

  @property
  def changes(self) -> int:
    """Returns how many of the operations change a file."""
    return sum(file_events.Event(*event.split(' ', 1)).changes for event in self.events)


@dataclasses.dataclass
class Outcome:
  """How a try has ended.

  Attributes:
    problems: what is wrong, a line each, which begins with its kind and a colon.
    harmed: for each process that was harmed, how it ended and the last that it did to a file.
    seconds: how long it took.
  """

  problems: list[str] = dataclasses.field(default_factory=list)
  harmed: list[str] = dataclasses.field(default_factory=list)
  seconds: float = 0

  def __str__(self):
    return ', '.join(sorted({problem.partition(':')[0] for problem in self.problems})) or GOOD


class Arena:
  """Runs kinds on a ground, and compares them with undisturbed runs."""

  def __init__(self, ground: kinds.Ground):
    self.ground = ground

  @functools.cache
  def reference(self, kind: kinds.Kind) -> Reference:
    """Returns what an undisturbed run of a kind does and leaves.

    Raises:
      RuntimeError: two of them differ; then nothing can be compared with them.
    """
    found = [self._undisturbed(kind) for _ in range(2)]
    if other := remains.differences(found[0].remains, found[1].remains):
      raise RuntimeError(f'{kind.name}: two undisturbed runs differ: {other}')
    return found[1]  # The first one had to compile.

  def _undisturbed(self, kind: kinds.Kind) -> Reference:
    ended = self.run(kind, self.ground.fresh(kind), [Harm()] * kind.processes)
    if problems := [problem for one in ended for problem in problems_of(one, {0})]:
      raise RuntimeError(f'{kind.name}: an undisturbed run fails: {problems}')
    return Reference(self.remains(kind), list(ended[0].notes), max(one.seconds for one in ended))

  def remains(self, kind: kinds.Kind) -> remains.Remains:
    """Returns what lies in the place of a kind."""
    return processes.call(remains.collect, self.ground.place(kind).folder)

  def run(self, kind: kinds.Kind, place: kinds.Place, harms: Sequence[Harm],
          commands: Sequence[kinds.Command] = ()) -> list[processes.Ended]:
    """Runs the command of a kind, or others, one for each harm, at the same time."""
    commands = commands or [kind.command(place)] * len(harms)
    return processes.run(
        *(_body(place, command, harm) for command, harm in zip(commands, harms, strict=True)),
        kill_after=tuple(harm.kill_after for harm in harms))

  def finish(self, kind: kinds.Kind, outcome: Outcome) -> Outcome:
    """Runs a kind once more, undisturbed, and adds what is wrong with what it leaves."""
    for ended in self.run(kind, self.ground.place(kind), [Harm()] * kind.processes):
      outcome.problems += problems_of(ended, {0})
      outcome.seconds += ended.seconds
    return self.compare(kind, outcome)

  def compare(self, kind: kinds.Kind, outcome: Outcome) -> Outcome:
    """Adds in what the place of a kind differs from that of an undisturbed run."""
    outcome.problems += remains.differences(self.reference(kind).remains, self.remains(kind))
    return outcome


def _body(place: kinds.Place, command: kinds.Command, harm: Harm) -> processes.Body:
  def body(note: processes.Note) -> int:
    def react(event: file_events.Event) -> None:
      note(f'{event.name} {event.path}')
      harm.before(event)

    harm.start()
    file_events.watch(str(place.folder), react)
    return command.execute(place)

  return body


def problems_of(ended: processes.Ended, codes: set[int]) -> list[str]:
  """Returns what is wrong with how a process has ended, which may be by these exit codes."""
  said = ended.said.splitlines()
  last = said[-1][:300] if said else 'nothing'
  if ended.hung:
    return [f'hangs: {last}']
  if 'Traceback (most recent call last)' in ended.said:
    return [f'traceback: {last}']
  if ended.code not in codes:
    return [f'exit code {ended.code}: {last}']
  problems = []
  if ended.code and not last.startswith(('kdih: ', 'failed: ')):
    problems = [f'no line: {last}']
  problems += [f'damaged: {line[:300]}' for line in said if re.search(r'is damaged|and is moved to',
                                                                     line)]
  return problems


def harmed(ended: processes.Ended, harm: Harm) -> str:
  """Returns a line on a process that was harmed."""
  changes = [note for note in ended.notes if file_events.Event(*note.split(' ', 1)).changes]
  said = ended.said.splitlines()
  return (f'{harm}: exit code {ended.code}, last change: {changes[-1] if changes else "none"}'
          + (f'; {said[-1][:200]}' if said and not ended.killed else ''))
