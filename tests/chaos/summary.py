"""The summary of all tries, as JSON: written after each try, because a run may be stopped."""
import collections
import json
import pathlib
import shlex
import subprocess
import sys
from typing import Any

from kdih.runtime import files
from tests.chaos.tries import GOOD, Outcome
from tests.helpers.runs import ROOT


class Summary:
  """The tries so far, by name.

  Args:
    path: of the file. Tries in it are kept if they were made with the same code and versions.
  """

  def __init__(self, path: pathlib.Path):
    self._path = path
    self._made_by = {'kdih': _git('rev-parse', 'HEAD:kdih'), 'versions': _versions()}
    self.tries: dict[str, dict[str, Any]] = {}
    self._killed = 0
    before = json.loads(path.read_text()) if path.exists() else {}
    if {name: before.get(name) for name in self._made_by} == self._made_by:
      self.tries = {
          **{name: {'outcome': outcome} for name, outcome in before['tries'].items()},
          **before['failures']}
      self._killed = before['killed']

  def add(self, name: str, outcome: Outcome) -> None:
    """Adds a try, and writes the file."""
    found: dict[str, Any] = {'outcome': str(outcome)}
    if outcome.problems:
      found |= {'problems': outcome.problems[:12], 'harmed': outcome.harmed,
                'reproduce': f'python -m tests.chaos --only={shlex.quote(name)}'}
    self.tries[name] = found
    self._killed += outcome.killed
    self.write()

  def write(self) -> None:
    """Writes the file."""
    counts: dict[str, Any] = {}
    for name, found in self.tries.items():
      part, kind, _ = name.split(':', 2)
      of_kind = counts.setdefault(part, {}).setdefault(kind, collections.Counter())
      of_kind[found['outcome']] += 1
    self._path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomically(self._path, json.dumps({
        'command': shlex.join(['python', '-m', 'tests.chaos', *sys.argv[1:]]),
        'commit': _git('rev-parse', 'HEAD'),
        **self._made_by,
        'killed': self._killed,  # Processes.
        'outcomes': counts,
        'failures': {name: found for name, found in self.tries.items()
                     if found['outcome'] != GOOD},
        'tries': {name: found['outcome'] for name, found in self.tries.items()},
    }, indent=1) + '\n')


def _git(*arguments: str) -> str:
  return subprocess.run(['git', *arguments], cwd=ROOT, capture_output=True, text=True,
                        check=False).stdout.strip()


def _versions() -> dict[str, str]:
  from kdih.runtime import provenance
  return {'python': sys.version.split()[0], **provenance._versions()}
