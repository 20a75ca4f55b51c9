"""Measures and computes how the cost of distillation grows.

  python -m launch.studies.scaling --out=launch/results/scaling
  python -m launch.studies.scaling --out=launch/results/scaling --only=batch,depth
  pip install '.[tpu]' && \\
      python -m launch.studies.scaling --out=launch/results/scaling --only=compiled

Parts: batch, depth, heads, classes, classes_gap and devices are measured on this machine's CPU;
head_sizes and caches are computed; compiled is analysed by XLA's compiler for the TPU, without a
TPU, takes half an hour, and resumes after an interruption. Each part replaces its own numbers in
`scaling.json`. The tables are printed, the pictures are drawn beside the file, and the tables in
`../../studies/scaling.md`, relative to the folder of the results, are updated if this file exists.
Exit codes: 0 done, 2 a setting is wrong.
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
NAME = 'scaling.json'  # The file with the numbers of all parts.


def main(argv: list[str]) -> int:
  """Runs the command line `argv` and returns the exit code."""
  return program.main(argv, f'{__doc__}', _run)


def _run(argv: list[str]) -> int:
  flags, parts = _flags(argv)
  folder = pathlib.Path(flags.out)
  read(folder)  # A damaged file must be reported before the measurements, not after them.
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  environment.set_environment({'deterministic': True})  # The default of a run.
  from launch.studies.scaling import pictures, tables  # These import jax, which takes seconds.

  environment.keep_freed_memory()
  for part in parts:
    logger.info(f'scaling: {part}')
    if part == 'compiled':
      _compile(folder, flags.smallest)
    else:
      put(folder, part, _numbers(part, flags))
  results = read(folder)
  print('\n\n'.join(tables.all_tables(results).values()))
  pictures.draw(results, folder)
  page = folder.parents[1] / 'studies' / 'scaling.md'
  if page.exists():
    tables.fill_in(page, results)
  return 0


def _flags(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
  """Returns the flags and the parts that they select; raises ConfigError if a flag is wrong."""
  parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False, add_help=False)
  parser.add_argument('--out', default='')
  parser.add_argument('--only', default=','.join(part for part in PARTS if part != 'compiled'))
  parser.add_argument('--repeats', default='9')
  parser.add_argument('--smallest', action='store_true')
  try:
    flags, unknown = parser.parse_known_args(argv[1:])
  except argparse.ArgumentError as error:
    raise errors.ConfigError(f'{error}; such as --out=launch/results/scaling') from error
  if unknown:
    raise errors.ConfigError(f'{unknown[0]!r} is not a flag; there are --out, --only, --repeats '
                             'and --smallest')
  if not flags.out:
    raise errors.ConfigError('--out: is not set; such as --out=launch/results/scaling')
  parts = [part.strip() for part in flags.only.split(',') if part.strip()]
  for part in parts:
    if part not in PARTS:
      raise errors.unknown('--only', part, PARTS)
  if not flags.repeats.isdecimal() or int(flags.repeats) < 2:
    raise errors.ConfigError(f'--repeats: {flags.repeats!r} is not an integer of 2 or more')
  return flags, parts


def read(folder: pathlib.Path) -> dict[str, Any]:
  """Returns {part: its numbers} for all parts that have been computed; {} if there is no file.

  Raises:
    ConfigError: the file is damaged or was not written by this program.
  """
  return run_files.read(folder / NAME, dict[str, Any]) or {}


def put(folder: pathlib.Path, part: str, content: Any) -> None:
  """Writes the numbers of one part, atomically, and keeps all other parts."""
  folder.mkdir(parents=True, exist_ok=True)
  run_files.write(folder / NAME, {**read(folder), part: content})


def _numbers(part: str, flags: argparse.Namespace) -> Any:
  """Computes or measures the numbers of a part."""
  from kdih.runtime import provenance
  from launch.studies.scaling import arithmetic, curves

  if part == 'head_sizes':
    return arithmetic.head_sizes()
  if part == 'caches':
    return arithmetic.caches()
  repeats = int(flags.repeats)
  rows = curves.measure(part, curves.points(flags.smallest)[part], repeats)
  made_by = provenance.collect()
  machine = {'cores': made_by['cpu_count'], 'jax': made_by['versions']['jax'],
             'load_before': os.getloadavg()[2], 'device': made_by['devices'][0]}
  return {'machine': machine, 'repeats': repeats, 'rows': rows}


def _compile(folder: pathlib.Path, smallest: bool) -> None:
  """Compiles all cases that the file lacks, and writes each one as soon as it is compiled."""
  from launch.studies.scaling import large

  for pair, chip, batch, remat in large.COMPILED[:1] if smallest else large.COMPILED:
    done = read(folder).get('compiled', [])
    key = {'pair': pair, 'chip': chip, 'batch': batch, 'remat': remat}
    if any(all(row[name] == value for name, value in key.items()) for row in done):
      continue
    logger.info(f'scaling: compiles {pair} for a {chip}, {batch} images per chip')
    put(folder, 'compiled', [*done, large.compile_for(pair, chip, batch, remat)])


if __name__ == '__main__':
  sys.exit(main(sys.argv))
