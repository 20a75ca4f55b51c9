"""Makes mistakes on purpose, one at a time, and shows which of them the fast tests notice.

  python -m tests.helpers.mutation                    # All of them: ten minutes on two quiet cores.
  python -m tests.helpers.mutation --only=best_is_last,mask_ignored
  python -m tests.helpers.mutation --list

Each mistake of `tests.helpers.mutants` is made in a copy of the repository. Its likeliest tests run
first, then all fast tests of its package and the run that has to learn. The exit code is 1 if a
mistake survives, and 2 if tests fail without any.
"""
import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable

import tabulate

from tests.helpers.mutants import MUTANTS, Mutant
from tests.helpers.runs import ROOT

LEARNS = 'main/test_learns.py'
_PARTS = ('kdih', 'configs', 'tests', 'launch', 'README.md', 'setup.py')


def mutated(mutant: Mutant, text: str) -> str:
  """Returns the text of a file with the mistake.

  Raises:
    ValueError: what it replaces does not occur exactly once.
  """
  count = text.count(mutant.old)
  if count != 1:
    raise ValueError(f'{mutant.name}: {mutant.old!r} occurs {count} times in kdih/{mutant.file}; '
                     'adapt tests/helpers/mutants.py')
  return text.replace(mutant.old, mutant.new)


def outcome(mutant: Mutant, tree: pathlib.Path) -> str:
  """Makes a mistake in a copy of the repository, runs tests, and undoes it.

  Returns:
    'noticed by FILE', 'survived', or 'error' if pytest could not run.
  """
  path = tree / 'kdih' / mutant.file
  text = path.read_text()
  path.write_text(mutated(mutant, text))
  try:
    for tests in (mutant.tests, (mutant.package, LEARNS)):
      code, output = run_tests(tree, tests)
      if code not in (0, 1):
        print(output[-2000:])
        return 'error'
      if code:
        failed = [line for line in output.splitlines() if line.startswith(('FAILED', 'ERROR'))]
        return f'noticed by {failed[0].split()[1]}' if failed else 'error'
  finally:
    path.write_text(text)
  return 'survived'


def run_tests(tree: pathlib.Path, tests: Iterable[str]) -> tuple[int, str]:
  """Runs fast tests in a copy of the repository; returns pytest's exit code and its output."""
  done = subprocess.run(
      [sys.executable, '-m', 'pytest', '-x', '-q', '-p', 'no:cacheprovider', '--tb=no',
       '--show-capture=no', *(f'tests/{name}' for name in tests)],
      cwd=tree, capture_output=True, text=True, check=False, env={
          **os.environ, 'PYTHONPATH': str(tree), 'PYTHONDONTWRITEBYTECODE': '1',
          'JAX_COMPILATION_CACHE_DIR': str(tree / 'compiled')})
  return done.returncode, done.stdout + done.stderr


def main(argv: list[str]) -> int:
  """Runs what the command line requests, and returns the exit code."""
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--only', default='', help='names of mistakes, separated by commas')
  parser.add_argument('--list', action='store_true', help='print the mistakes and make none')
  arguments = parser.parse_args(argv)
  names = arguments.only.split(',') if arguments.only else [mutant.name for mutant in MUTANTS]
  if unknown := set(names) - {mutant.name for mutant in MUTANTS}:
    parser.error(f'unknown: {", ".join(sorted(unknown))}; --list prints the names')
  chosen = [mutant for mutant in MUTANTS if mutant.name in names]
  if arguments.list:
    print(tabulate.tabulate([(m.name, m.file, m.old, m.new) for m in chosen],
                            headers=('mistake', 'file', 'old', 'new'), disable_numparse=True))
    return 0

  with tempfile.TemporaryDirectory(prefix='kdih-mutation-') as folder:
    tree = pathlib.Path(folder)
    for part in _PARTS:
      source = ROOT / part
      (shutil.copytree if source.is_dir() else shutil.copy)(source, tree / part)
    code, output = run_tests(tree, dict.fromkeys(
        name for mutant in chosen for name in mutant.tests))
    if code:
      print(f'{output}\ntests fail without a mistake; fix them first')
      return 2
    rows = []
    for mutant in chosen:
      rows.append((mutant.name, mutant.file, outcome(mutant, tree)))
      print(*rows[-1], flush=True)
  print(tabulate.tabulate(rows, headers=('mistake', 'file', 'outcome')))
  noticed = sum(result.startswith('noticed') for _, _, result in rows)
  print(f'{noticed} of {len(rows)} noticed')
  return 0 if noticed == len(rows) else 1


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
