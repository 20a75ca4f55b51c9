"""Breaks kdih, and goes on: kills runs, lets the system fail them, changes what they read.

  python -m tests.chaos
  python -m tests.chaos --parts=kills --kinds=sweep,report --kills=50 --seed=1
  python -m tests.chaos --only='kills:phases:event=17,time=0+1.25'

Run the same command again to resume. After the code has changed, tries that ended otherwise are
made again, the others are kept; remove the summary's `.tries` file to begin anew. Exit codes: 0
every try ended as it should, 1 some did not.
"""
import argparse
import itertools
import os
import pathlib
import signal
import sys
import tempfile
from collections.abc import Iterator
from types import ModuleType

# Before jax is imported. What takes long is to compile.
os.environ.update(
    JAX_PLATFORMS='cpu', JAX_NUM_CPU_DEVICES='1', JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0',
    TF_CPP_MIN_LOG_LEVEL='3', TF_ENABLE_ONEDNN_OPTS='0', MPLBACKEND='agg',
    XLA_FLAGS='--xla_backend_optimization_level=0')

from kdih.runtime import environment  # noqa: E402

environment.set_environment({'deterministic': True})

from tests.chaos import faults, kills, kinds, mutations, processes  # noqa: E402
from tests.chaos.summary import Summary  # noqa: E402
from tests.chaos.tries import GOOD, Arena  # noqa: E402
from tests.helpers.runs import ROOT  # noqa: E402

PARTS: dict[str, ModuleType] = {'kills': kills, 'faults': faults, 'mutations': mutations}
KINDS = sorted({kind for part in PARTS.values() for kind in part.KINDS})


def main(argv: list[str]) -> int:
  """Runs the command line `argv`, and returns the exit code."""
  given = _parser().parse_args(argv[1:])
  signal.signal(signal.SIGTERM, signal.default_int_handler)  # Nothing stays mounted.
  with tempfile.TemporaryDirectory(prefix='kdih-chaos-', ignore_cleanup_errors=True) as temporary:
    folder = pathlib.Path(given.folder or temporary).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    processes.import_everything(str(folder / 'compiled'))
    summary = Summary(pathlib.Path(given.output).absolute())
    arena = Arena(kinds.Ground(folder))
    for name in given.only or _names(arena, summary, given):
      outcome = PARTS[name.partition(':')[0]].attempt(arena, name)
      print(f'{outcome.seconds:5.1f} s  {name}: {outcome}', flush=True)
      for line in (*outcome.harmed, *outcome.problems)[:20] if outcome.problems else ():
        print(f'         {line}', flush=True)
      summary.add(name, outcome)
  bad = sum(not outcome.startswith(GOOD) for outcome in summary.tries.values())
  print(f'{len(summary.tries)} tries, {bad} of them ended otherwise than uninterrupted')
  return 1 if bad else 0


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser('tests.chaos', description=__doc__, allow_abbrev=False,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--parts', type=_names_of(PARTS), default=list(PARTS),
                      help=f'some of {",".join(PARTS)}')
  parser.add_argument('--kinds', type=_names_of(KINDS), default=KINDS,
                      help=f'some of {",".join(KINDS)}')
  parser.add_argument('--kills', type=int, default=300, help='how many tries with kills')
  parser.add_argument('--faults', type=int, default=300,
                      help='how many tries with faults of the system, at most')
  parser.add_argument('--mutations', type=int, default=3000,
                      help='how many tries with configs and files that are changed')
  parser.add_argument('--seed', type=int, default=0, help='draws other moments')
  parser.add_argument('--only', action='append', help='the name of a try to make again')
  parser.add_argument('--output', default=str(ROOT / 'launch/results/chaos.json'),
                      help='the file of the summary')
  parser.add_argument('--folder', default='', help='where to work, and leave the last try of each '
                      'kind; else in a temporary folder, which is removed')
  return parser


def _names_of(known):
  def parse(text: str) -> list[str]:
    names = text.split(',')
    if unknown := set(names) - set(known):
      raise argparse.ArgumentTypeError(f'{sorted(unknown)} are none of {", ".join(known)}')
    return names

  return parse


def _names(arena: Arena, summary: Summary, given: argparse.Namespace) -> Iterator[str]:
  """Yields the names of the tries that the command line asks for, and that are still to be made."""
  for name, part in PARTS.items():
    chosen = [kind for kind in part.KINDS if kind in given.kinds]
    if name in given.parts and chosen:
      made = [each for each in summary.tries if each.split(':')[0] == name]
      yield from (each for each in made if each in summary.to_repeat)
      new = (each for each in part.plan(arena, chosen, given.seed) if each not in summary.tries)
      yield from itertools.islice(new, max(0, getattr(given, name) - len(made)))


if __name__ == '__main__':
  sys.exit(main(sys.argv))
