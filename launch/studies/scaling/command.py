"""The command: parts, one after the other, into one JSON file; then tables, pictures and page."""
import argparse
import os
import pathlib
from typing import Any

import jax

from kdih import errors
from kdih.runtime.progress import say
from launch.studies.scaling import curves, large, pictures, records, sizes, tables

CURVES = ('batch', 'depth', 'heads', 'classes', 'classes_gap', 'devices')
PARTS = (*CURVES, 'head_sizes', 'caches', 'compiled')
_RESNETS, _VITS = large.PAIRS
# Pair, chip, images on a chip, rematerialisation: what is compiled, in this order.
COMPILED = [*((pair, 'TPU v4', batch, False) for batch in (128, 4, 512, 64)
              for pair in (_RESNETS, _VITS)),
            (_RESNETS, 'TPU v5e', 128, False), (_RESNETS, 'TPU v4', 512, True)]


def parser() -> argparse.ArgumentParser:
  """Of the flags."""
  found = argparse.ArgumentParser(
      'launch.studies.scaling', exit_on_error=False, allow_abbrev=False, add_help=False,
      usage='python -m launch.studies.scaling --out=FOLDER [--only=PART,…] [--repeats=N] '
      '[--smallest]')
  found.add_argument('--out', default='')
  found.add_argument('--only', default=','.join(part for part in PARTS if part != 'compiled'))
  found.add_argument('--repeats', default='9')
  found.add_argument('--smallest', action='store_true')
  return found


def run(argv: list[str]) -> int:
  """Does what the command line asks for; raises ConfigError where it cannot be done."""
  given, parts = _read(argv)
  folder = pathlib.Path(given.out)
  records.read(folder)
  for part in parts:
    say(f'scaling: {part}')
    if part == 'compiled':
      _compile(folder, given.smallest)
    else:
      records.put(folder, part, _made(part, given))
  found = records.read(folder)
  print('\n\n'.join(tables.all_tables(found).values()))
  pictures.draw(found, folder)
  page = folder.parents[1] / 'studies' / 'scaling.md'
  if page.exists():
    tables.fill_in(page, found)
  return 0


def _read(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
  try:
    given, unknown = parser().parse_known_args(argv[1:])
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


def _made(part: str, given: argparse.Namespace) -> Any:
  if part == 'head_sizes':
    return sizes.heads()
  if part == 'caches':
    return sizes.caches()
  curve = curves.setups(given.smallest)[part]
  rows = curves.measure(part, curve, int(given.repeats))
  return {'machine': _machine(), 'repeats': int(given.repeats), 'rows': rows}


def _machine() -> dict[str, Any]:
  return {'cores': os.cpu_count(), 'jax': jax.__version__,
          'load_before': os.getloadavg()[2], 'device': jax.devices()[0].device_kind}


def _compile(folder: pathlib.Path, smallest: bool) -> None:
  """Compiles what the file does not hold yet; each takes minutes, and is written at once."""
  for pair, chip, batch, remat in COMPILED[:1] if smallest else COMPILED:
    done = records.read(folder).get('compiled', [])
    key = {'pair': pair, 'chip': chip, 'batch': batch, 'remat': remat}
    if any(all(row[name] == value for name, value in key.items()) for row in done):
      continue
    say(f'scaling: compiles {pair} for a {chip}, {batch} images a chip')
    records.put(folder, 'compiled', [*done, large.compile_for(pair, chip, batch, remat)])
