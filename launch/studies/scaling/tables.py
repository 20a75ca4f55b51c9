"""The tables of `launch/studies/scaling.md`, made from `scaling.json`."""
import functools
import itertools
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tabulate

from kdih import errors
from kdih.runtime.files import write_atomically
from launch.studies.scaling import arithmetic, curves

# For each curve: its variable, and the point that all points are compared with.
AXES = {'batch': ('batch', 64), 'depth': ('teacher', 20), 'heads': ('heads', 3),
        'classes': ('classes', 100), 'classes_gap': ('classes', 100), 'devices': ('devices', 1)}
# Weak scaling has WEAK images on each chip, strong scaling has STRONG images on all chips together.
WEAK, STRONG = 128, 4096
_MIB, _MB = 2**20, 1e6


def all_tables(results: Mapping[str, Any]) -> dict[str, str]:
  """Returns {name: Markdown table} for the parts of `results`, from `__main__.read`."""
  makers: dict[str, Callable[[Any], str]] = {
      **{name: functools.partial(_curve, name) for name in AXES},
      'head_sizes': _head_sizes, 'caches': _caches}
  tables = {name: make(results[name]) for name, make in makers.items() if name in results}
  if 'compiled' in results:
    tables |= {'memory': _memory(results['compiled']), 'chips': _chips(results['compiled'])}
  return tables


def fill_in(page: pathlib.Path, results: Mapping[str, Any]) -> None:
  """Writes each table between its markers, `<!-- scaling: NAME -->` and `<!-- end -->`.

  Raises:
    ConfigError: the page has no such markers; it is not changed.
  """
  text = page.read_text(encoding='utf-8')
  for name, table in all_tables(results).items():
    text, places = re.subn(rf'(<!-- scaling: {name} -->\n).*?(<!-- end -->)',
                           rf'\g<1>{table}\n\g<2>', text, flags=re.DOTALL)
    if not places:
      raise errors.ConfigError(f'--out: {page} has no place for the table {name!r}; add '
                               f'<!-- scaling: {name} --> and <!-- end -->, or move it away')
  write_atomically(page, text)


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
  table = tabulate.tabulate(rows, header, tablefmt='pipe', disable_numparse=True,
                            colalign=['left', *['right'] * (len(header) - 1)])
  return f'{caption}\n\n{table}'


def reference(name: str, rows: Sequence[Mapping[str, Any]]) -> int:
  """Returns the point of a curve that all points are compared with; the first if it is missing."""
  wanted = AXES[name][1]
  return wanted if any(row['at'] == wanted for row in rows) else rows[0]['at']


def _curve(name: str, part: Mapping[str, Any]) -> str:
  base, machine = reference(name, part['rows']), part['machine']
  label = AXES[name][0]
  header = [label, 'ms per step', 'quartiles', f'ratio to {base:,}']
  if name == 'batch':
    header.append('images/s')
  elif name not in ('depth', 'devices'):
    header.append('parameters of heads')
  rows = []
  for row in curves.summary(part['rows'], base):
    at = f'resnet{row["at"]}' if label == 'teacher' else f'{row["at"]:,}'
    cells = [at, f'{row["ms"]:.1f}', f'{row["low"]:.1f} – {row["high"]:.1f}',
             f'{row["ratio"]:.2f}']
    if name == 'batch':
      cells.append(f'{1e3 * row["at"] / row["ms"]:,.0f}')
    elif name not in ('depth', 'devices'):
      cells.append(f'{row["head_parameters"]:,}')
    rows.append(cells)
  caption = (f'Measured: {machine["cores"]} CPU cores, jax {machine["jax"]}, medians of '
             f'{part["repeats"]} turns, load {machine["load_before"]:.1f} before.')
  return _markdown(header, rows, caption)


def _head_sizes(part: Sequence[Mapping[str, Any]]) -> str:
  rows = [[row['teacher'], row['kind'],
           f'{next(iter(row["each"]))}: {next(iter(row["each"].values())):,}',
           f'{row["parameters"]:,}', size(row['frozen_bytes']), size(row['trained_bytes'])]
          for row in part]
  return _markdown(['teacher', 'kind', 'parameters of the first head', 'of all heads',
                    'frozen, float32', 'in training, with gradients and momentum'], rows,
                   'Computed, from shapes.')


def _caches(part: Sequence[Mapping[str, Any]]) -> str:
  rows = [[row['data'], f'{row["images"]:,}', f'{row["classes"]:,}',
           f'{row["views"]:,}' if row['views'] else 'random', size(row['one']),
           size(row['all']) if row['all'] else 'impossible'] for row in part]
  return _markdown(['data', 'images', 'classes', 'views of an image', 'one view', 'all views'],
                   rows, 'Computed: images × views × classes × 2 bytes (bfloat16).')


def size(count: float) -> str:
  """Returns a number of bytes as text, in a suitable decimal unit."""
  for unit, scale in (('TB', 1e12), ('GB', 1e9), ('MB', 1e6)):
    if count >= scale:
      return f'{count / scale:,.1f} {unit}'
  return f'{count / 1e3:,.1f} kB'


def _memory(part: Sequence[Mapping[str, Any]]) -> str:
  fields = list(part[0]['memory'])
  rows = []
  for row in in_order(part):
    total = sum(row['memory'].values())
    rows.append([row['pair'], row['chip'],
                 f'{row["batch"]}' + (', remat' if row['remat'] else ''),
                 *(f'{row["memory"][field] / _MIB:,.0f}' for field in fields),
                 f'{total / _MIB:,.0f}',
                 f'{100 * total / arithmetic.CHIPS[row["chip"]].memory:.0f} %'])
  header = ['pair', 'chip', 'images per chip', *fields, 'total', 'fraction of the chip']
  return _markdown(header, rows, f'{_compiled_by(part)} Memory in MiB per chip.')


def in_order(part: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
  """Returns the compiled cases sorted by pair, chip and images per chip."""
  return sorted(part, key=lambda row: (row['pair'], row['chip'], row['batch'], row['remat']))


def _compiled_by(part: Sequence[Mapping[str, Any]]) -> str:
  versions = part[0]['versions']
  return (f'Computed: by XLA\'s compiler for the TPU (libtpu {versions["libtpu"]}, '
          f'jax {versions["jax"]}), for eight chips; bfloat16, gap heads.')


def scaled(part: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Returns the modelled times and efficiencies for each pair, chip, scaling and number of chips.

  The efficiency is the images per second of each chip, divided by the images per second of a single
  chip with `WEAK` images.
  """
  fields = ('flops', 'bytes_moved', 'gradient_bytes', 'all_reduce_bytes', 'all_reduces')
  plain = {(row['pair'], row['chip'], row['batch']): row
           for row in in_order(part) if not row['remat']}
  rows = []
  for pair, chip in dict.fromkeys((pair, chip) for pair, chip, batch in plain if batch == WEAK):
    alone, figures = plain[pair, chip, WEAK], arithmetic.CHIPS[chip]
    best = arithmetic.roofline(figures, alone['flops'], alone['bytes_moved']) / alone['batch']
    for kind, chips in itertools.product(('weak', 'strong'), figures.slices):
      batch = WEAK if kind == 'weak' else STRONG // chips
      one = plain.get((pair, chip, batch))
      if not one:
        continue
      step = arithmetic.step(figures, chips, **{field: one[field] for field in fields})
      rows.append({
          'pair': pair, 'chip': chip, 'kind': kind, 'chips': chips, 'batch': batch,
          'compute': step.compute, 'seconds': step.overlapped,
          'apart': best * batch / step.apart, 'overlapped': best * batch / step.overlapped,
          'images_per_host': arithmetic.input_rate(
              chips, figures.per_host, batch, step.overlapped),
          'sent': arithmetic.ring_bytes(one['all_reduce_bytes'], chips),
          'all_reduce_bytes': one['all_reduce_bytes'], 'all_reduces': one['all_reduces']})
  return rows


def _chips(part: Sequence[Mapping[str, Any]]) -> str:
  rows = [[row['pair'], f'{row["chips"]:,} × {row["chip"]}', f'{row["batch"]:,}',
           f'{row["batch"] * row["chips"]:,}', f'{1e3 * row["compute"]:.1f}',
           f'{1e3 * row["seconds"]:.1f}', f'{100 * row["apart"]:.0f} %',
           f'{100 * row["overlapped"]:.0f} %', f'{row["all_reduce_bytes"] / _MB:.1f}',
           f'{row["sent"] / _MB:.1f}', f'{row["all_reduces"]}',
           f'{row["images_per_host"]:,.0f}',
           f'{row["images_per_host"] * arithmetic.image_bytes(224) / _MB:,.0f}',
           f'{row["images_per_host"] * arithmetic.JPEG_BYTES / _MB:,.0f}']
          for row in scaled(part)]
  return _markdown(
      ['pair', 'chips', 'images per chip', 'batch', 'compute ms', 'step ms', 'efficiency, apart',
       'overlapped', 'all-reduced MB', 'MB sent per chip', 'all-reduces', 'images/s per host',
       'MB/s decoded', 'MB/s as JPEG'], rows,
      _compiled_by(part) + ' Times and rates come from the model below; they are not measured.')
