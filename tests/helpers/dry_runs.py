"""What a dry run prints, and a clock and a speed for it that do not depend on the machine."""
import itertools
import re
from typing import NamedTuple

import pytest

from kdih.phases import dry_run
from kdih.phases.dry_run import Measurement

SECONDS, COMPILING, MEMORY = 0.5, 40.0, 3 * 10**6  # Of each step that is measured.


class Row(NamedTuple):
  """A line of the table, in its words."""

  phase: str
  model: str
  parameters: str
  steps: str
  step: str
  total: str
  memory: str
  runs: str


def rows(text: str) -> list[Row]:
  """The lines of the table that say what a phase takes."""
  title = next(line for line in text.splitlines() if line.startswith('phase '))
  # The first two columns begin with their titles, the others end with theirs.
  model, ends = title.index('model'), [
      match.end() for match in re.finditer(r'\S+( \S+)*', title)][2:]
  found = []
  for line in text.splitlines():
    if re.search(r' x \d+$', line):
      match = re.fullmatch(r'(.*?)(?: {2,}([\d,]+))?', line[model:ends[0]])
      name, parameters = match.groups('') if match else ('', '')
      cells = [line[begin:end].strip() for begin, end in itertools.pairwise(ends)]
      found.append(Row(line[:model].strip(), name.strip(), parameters, *cells))
  return found


def by_phase(text: str) -> dict[str, Row]:
  """The same, by the phase."""
  return {row.phase: row for row in rows(text)}


def measured(said: str) -> list[str]:
  """The phases that standard error says were measured."""
  return re.findall(r'^dry run: measures (.*)$', said, re.MULTILINE)


@pytest.fixture
def clock(monkeypatch):
  """Measures nothing: each step takes the same, and a minute goes by."""
  now = [0.0]

  def pretend(entry: dry_run.PhaseEstimate) -> Measurement:
    now[0] += 60
    return Measurement(SECONDS, COMPILING, MEMORY)

  monkeypatch.setattr(dry_run.time, 'perf_counter', lambda: now[0])
  monkeypatch.setattr(dry_run, '_measured', pretend)
