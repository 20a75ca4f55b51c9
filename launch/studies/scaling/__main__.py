"""Measures and works out how the cost of distillation grows.

  python -m launch.studies.scaling --out=launch/results/scaling
  python -m launch.studies.scaling --out=launch/results/scaling --only=batch,depth
  pip install '.[tpu]' && \\
      python -m launch.studies.scaling --out=launch/results/scaling --only=compiled

Parts: batch, depth, heads, classes, classes_gap, devices (measured here, on the CPU), head_sizes,
caches (worked out), compiled (by XLA's compiler for the TPU, without one; it takes half an hour,
and goes on where it was cut off). Each replaces its numbers in `scaling.json` and leaves the
others. Tables are printed, pictures drawn beside the file, and the page of these results,
`launch/studies/scaling.md`, is brought up to date: `studies/scaling.md`, seen from the folder above
that of the results, if it is there. Exit codes: 0 done, 2 a setting is wrong.
"""
import argparse
import logging
import os
import pathlib
import sys
from typing import Any

from kdih import errors
from kdih.runtime import environment, program, run_files

logger = logging.getLogger(__name__)

PARTS = ('batch', 'depth', 'heads', 'classes', 'classes_gap', 'devices', 'head_sizes', 'caches',
         'compiled')
NAME = 'scaling.json'  # Of the file that holds every number, part by part.


def main(argv: list[str]) -> int:
  """Runs what the command line `argv` asks for and returns the exit code."""
  return program.main(argv, f'{__doc__}', _run)


def _run(argv: list[str]) -> int:
  given, parts = _flags(argv)
  folder = pathlib.Path(given.out)
  read(folder)  # What is wrong with the file is said before the work.
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  environment.set_environment({'deterministic': True})  # The default of a run.
  from launch.studies.scaling import pictures, tables  # These import jax, which takes seconds.

  environment.keep_freed_memory()
  for part in parts:
    logger.info(f'scaling: {part}')
    if part == 'compiled':
      _compile(folder, given.smallest)
    else:
      put(folder, part, _made(part, given))
  found = read(folder)
  print('\n\n'.join(tables.all_tables(found).values()))
  pictures.draw(found, folder)
  page = folder.parents[1] / 'studies' / 'scaling.md'
  if page.exists():
    tables.fill_in(page, found)
  return 0


def _flags(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
  """The flags, and the parts that they name; raises ConfigError where one is wrong."""
  parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False, add_help=False)
  parser.add_argument('--out', default='')
  parser.add_argument('--only', default=','.join(part for part in PARTS if part != 'compiled'))
  parser.add_argument('--repeats', default='9')
  parser.add_argument('--smallest', action='store_true')
  try:
    given, unknown = parser.parse_known_args(argv[1:])
  except argparse.ArgumentError as error:
    raise errors.ConfigError(f'{error}; such as --out=launch/results/scaling') from error
  if unknown:
    raise errors.ConfigError(f'{unknown[0]!r} is not a flag; there are --out, --only, --repeats '
                             'and --smallest')
  if not given.out:
    raise errors.ConfigError('--out: is not set; such as --out=launch/results/scaling')
  parts = [part.strip() for part in given.only.split(',') if part.strip()]
  for part in parts:
    if part not in PARTS:
      raise errors.unknown('--only', part, PARTS)
  if not given.repeats.isdecimal() or int(given.repeats) < 2:
    raise errors.ConfigError(f'--repeats: {given.repeats!r} is no number from 2 on')
  return given, parts


def read(folder: pathlib.Path) -> dict[str, Any]:
  """All parts that have been made, by name; {} where there are none.

  Raises:
    ConfigError: the file is damaged, or none of this program's.
  """
  return run_files.read(folder / NAME, dict[str, Any]) or {}


def put(folder: pathlib.Path, part: str, content: Any) -> None:
  """Writes a part, atomically, and leaves the others as they are."""
  folder.mkdir(parents=True, exist_ok=True)
  run_files.write(folder / NAME, {**read(folder), part: content})


def _made(part: str, given: argparse.Namespace) -> Any:
  """A part that is worked out, or measured."""
  from kdih.runtime import provenance
  from launch.studies.scaling import arithmetic, curves

  if part == 'head_sizes':
    return arithmetic.head_sizes()
  if part == 'caches':
    return arithmetic.caches()
  repeats = int(given.repeats)
  rows = curves.measure(part, curves.setups(given.smallest)[part], repeats)
  made_by = provenance.collect()
  machine = {'cores': made_by['cpu_count'], 'jax': made_by['versions']['jax'],
             'load_before': os.getloadavg()[2], 'device': made_by['devices'][0]}
  return {'machine': machine, 'repeats': repeats, 'rows': rows}


def _compile(folder: pathlib.Path, smallest: bool) -> None:
  """Compiles what the file does not hold yet; each takes minutes, and is written at once."""
  from launch.studies.scaling import large

  for pair, chip, batch, remat in large.COMPILED[:1] if smallest else large.COMPILED:
    done = read(folder).get('compiled', [])
    key = {'pair': pair, 'chip': chip, 'batch': batch, 'remat': remat}
    if any(all(row[name] == value for name, value in key.items()) for row in done):
      continue
    logger.info(f'scaling: compiles {pair} for a {chip}, {batch} images a chip')
    put(folder, 'compiled', [*done, large.compile_for(pair, chip, batch, remat)])


if __name__ == '__main__':
  sys.exit(main(sys.argv))
