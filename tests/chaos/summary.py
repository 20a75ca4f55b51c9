"""The summary of all tries, as JSON and as a table; written after each try, for runs are stopped.

Several processes may write to one summary at the same time, each with tries of its own.
"""
import collections
import hashlib
import json
import pathlib
import shlex
import subprocess
import sys
from typing import Any

import tabulate

from kdih.runtime import files
from tests.chaos.tries import GOOD, Outcome
from tests.helpers.runs import ROOT

Content = dict[str, Any]


class Summary:
  """The tries so far.

  Args:
    path: of the summary. The outcome of each try, by which a run resumes, is in `NAME.tries` beside
      it.

  Attributes:
    tries: the outcome of each try, by its name.
    to_repeat: the names of those that ended otherwise with code that has changed since.
  """

  def __init__(self, path: pathlib.Path):
    self._path, self._state = path, path.with_suffix('.tries')
    self._made_by = {'code': _code(), 'versions': _versions()}
    given = [word for word in sys.argv[1:] if not word.startswith(('--output', '--folder'))]
    self._command = shlex.join(['python', '-m', 'tests.chaos', *given])
    found = self._read()
    self.tries: dict[str, str] = found['tries']
    self.to_repeat = {name for name, failure in found['failures'].items()
                      if failure['code'] != self._made_by['code']}

  def _read(self) -> Content:
    found = json.loads(self._state.read_text()) if self._state.exists() else {
        'commands': [], 'made_by': [], 'killed': 0, 'failures': {}, 'tries': {}}
    if self._command not in found['commands']:
      found['commands'].append(self._command)
    return found

  def add(self, name: str, outcome: Outcome) -> None:
    """Adds a try, and writes both files."""
    self._path.parent.mkdir(parents=True, exist_ok=True)
    with files.locked(self._path.with_name(f'.{self._path.name}.lock'), waiting='chaos: waits'):
      found = self._read()
      found['tries'][name] = str(outcome)
      self._count(found['made_by'])
      found['killed'] += outcome.killed  # Processes.
      found['failures'].pop(name, None)
      if outcome.problems:
        found['failures'][name] = {
            'code': self._made_by['code'], 'outcome': str(outcome),
            'problems': outcome.problems[:12], 'harmed': outcome.harmed,
            'reproduce': f'python -m tests.chaos --only={shlex.quote(name)}'}
      files.write_atomically(self._state, json.dumps(found))
    self.tries = found.pop('tries')
    files.write_atomically(self._path, json.dumps(
        {**found, 'outcomes': _counts(self.tries)}, indent=1) + '\n')

  def _count(self, made_by: list[Content]) -> None:
    """Counts a try among those that were made with this code and these versions."""
    for entry in made_by:
      if {name: entry[name] for name in self._made_by} == self._made_by:
        entry['tries'] += 1
        return
    made_by.append({**self._made_by, 'tries': 1})


def _counts(tries: dict[str, str]) -> Content:
  """Returns how many tries have each outcome, by part and kind."""
  counts: Content = {}
  for name, outcome in sorted(tries.items()):
    part, kind, _ = name.split(':', 2)
    of_kind = counts.setdefault(part, {}).setdefault(kind, collections.Counter())
    of_kind[outcome] += 1
  return counts


def table(path: pathlib.Path) -> str:
  """Returns a summary as a table in Markdown: a row for each part, with its kinds."""
  rows = []
  for part, kinds in json.loads(path.read_text())['outcomes'].items():
    tries = sum(sum(counts.values()) for counts in kinds.values())
    good = sum(count for counts in kinds.values() for outcome, count in counts.items()
               if outcome.startswith(GOOD))
    rows.append([part, ', '.join(sorted(kinds)), f'{tries:,}', f'{tries - good:,}'])
  return tabulate.tabulate(rows, ['part', 'kinds', 'tries', 'otherwise'], tablefmt='pipe',
                           disable_numparse=True, colalign=['left', 'left', 'right', 'right'])


def _code() -> str:
  """Returns a digest of kdih and of the harness: of all files that git tracks, or would track."""
  digest = hashlib.sha256()
  listed = subprocess.run(
      ['git', 'ls-files', '--cached', '--others', '--exclude-standard', 'kdih', 'tests/chaos',
       'tests/helpers'], cwd=ROOT, capture_output=True, text=True, check=True)
  for name in sorted(listed.stdout.splitlines()):
    if (ROOT / name).is_file():
      digest.update(name.encode() + (ROOT / name).read_bytes())
  return digest.hexdigest()[:16]


def _versions() -> dict[str, str]:
  from kdih.runtime import provenance
  return {'python': sys.version.split()[0], **provenance._versions()}
