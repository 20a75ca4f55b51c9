"""The results of a benchmark, as JSON and as a table."""
import textwrap
from collections.abc import Iterable
from typing import Any

import tabulate

from kdih.benchmark import programs, step_parts
from kdih.benchmark.measuring import Times
from kdih.benchmark.roofline import Ceilings, Work
from kdih.data import augment

_LEGEND = """
bare: the compiled DIH step, repeated on one batch. loop: the training loop of DIH, with the
in-memory loader, sampling and metrics, without evaluation and checkpoints. kd: the compiled step of
plain KD. several: three students that share the cohort's logits of each batch. cached: as loop, but
the cohort's logits are looked up in a cache of all views; the time to build the cache is excluded.
input, teacher, heads, student (forward, backward and update): the parts of the DIH step, each
compiled as a separate program. sweep_over_cached is computed from these times: a sweep of three
methods with three seeds and 200 epochs, its time without a cache divided by its time with a cache,
including the time to build it.
torch_paper, torch_tuned: the same training in PyTorch, including crop, flip and normalisation."""


def pair_results(
    teacher: str, student: str, batch_size: int, times: dict[str, Times], work: Work,
    ceilings: Ceilings,
) -> dict[str, Any]:
  """Returns the results for one pair of models at one batch size."""
  entry: dict[str, Any] = {
      'teacher': teacher, 'student': student, 'batch': batch_size,
      'items': {name: item_results(batch_size, measured) for name, measured in times.items()},
      'ratios': ratios(times),
      'cost': {'flops': work.flops, 'bytes': work.bytes, 'temporary_bytes': work.memory},
      'roofline': {
          'seconds': work.seconds(ceilings), 'bound': work.bound(ceilings),
          'fraction': work.seconds(ceilings) / times['bare'].median},
  }
  if {'loop', 'student'} <= times.keys():
    entry['shares'] = step_parts.shares(times)
  return entry


def item_results(batch_size: int, times: Times) -> dict[str, Any]:
  """Returns the seconds per step, and the examples per second."""
  return {'median_s': times.median, 'quartiles_s': list(times.quartiles),
          'runs_s': list(times.seconds), 'examples_per_second': batch_size / times.median}


def ratios(times: dict[str, Times]) -> dict[str, float]:
  """Returns {name: ratio of two medians}, for all pairs of items that were measured."""
  pairs = {
      'loop_efficiency': ('bare', 'loop'),
      'dih_over_kd': ('bare', 'kd'),
      'several_over_one': ('several', 'bare'),
      'loop_over_cached': ('loop', 'cached'),
      'torch_paper_over_loop': ('torch_paper', 'loop'),
      'torch_tuned_over_loop': ('torch_tuned', 'loop'),
      'torch_paper_over_cached': ('torch_paper', 'cached'),
      'torch_tuned_over_cached': ('torch_tuned', 'cached'),
  }
  quotients = {name: times[one].median / times[other].median
               for name, (one, other) in pairs.items() if one in times and other in times}
  if {'loop', 'kd', 'cached', 'input', 'teacher', 'heads'} <= times.keys():
    quotients['sweep_over_cached'] = _sweep_over_cached(
        {name: measured.median for name, measured in times.items()})
  return quotients


def _sweep_over_cached(seconds: dict[str, float]) -> float:
  """Computes how much longer a sweep takes without a cache of all views than with one.

  The sweep has three seeds of DIH and of two methods that cost as much as KD. The time to build the
  cache is included.
  """
  epochs, seeds = 200, 3
  without_cache = epochs * seeds * (seconds['loop'] + 2 * seconds['kd'])
  building = augment.make_preprocess(**programs.AUGMENTATION).num_views * sum(
      seconds[part] for part in ('input', 'teacher', 'heads'))
  return without_cache / (building + epochs * seeds * 3 * seconds['cached'])


def table(content: dict[str, Any]) -> str:
  """Returns all results as text for the terminal."""
  devices, ceilings = content['devices'], content['ceilings']
  lines = [
      f'{len(devices)} x {devices[0]}, {content["processor"]}, {content["cpus_usable"]} CPUs',
      ', '.join(f'{name} {version}' for name, version in content['versions'].items()),
      f'{content["precision"]}, {content["runs"]} runs; ceilings: '
      f'{ceilings["bytes_per_second"] / 1e9:,.1f} GB/s, '
      f'{ceilings["flops_per_second"] / 1e9:,.1f} GFLOP/s']
  for entry in content['pairs']:
    lines += ['', *_section(entry)]
  return '\n'.join([*lines, _LEGEND])


def _section(entry: dict[str, Any]) -> Iterable[str]:
  yield f'{entry["teacher"]} -> {entry["student"]}, batch {entry["batch"]}'
  rows = [['', 'ms per step', 'quartiles', 'examples/s']]
  for name, item in entry['items'].items():
    first, third = (f'{1000 * value:,.2f}' for value in item['quartiles_s'])
    rows.append([name, f'{1000 * item["median_s"]:,.2f}', f'{first} to {third}',
                 f'{item["examples_per_second"]:,.0f}'])
  yield textwrap.indent(tabulate.tabulate(
      rows, tablefmt='plain', disable_numparse=True,
      colalign=('left', 'right', 'right', 'right')), '  ')
  for title, values in (('ratios', entry['ratios']), ('shares', entry.get('shares', {}))):
    if values:
      yield f'  {title}: ' + ', '.join(f'{name} {value:.3f}' for name, value in values.items())
  cost, roofline = entry['cost'], entry['roofline']
  yield (f'  step: {cost["flops"]:.3e} FLOPs, {cost["bytes"]:.3e} bytes on each device; '
         f'{roofline["fraction"]:.1%} of the roofline, bound by {roofline["bound"]}')
  if 'start' in entry:
    yield ('  start to first step: {first:.1f} s with an empty compilation cache, '
           'then {second:.1f} s'.format(**entry['start']))
  for form, note in entry.get('peer', {}).get('forms', {}).items():
    yield f'  {form}: {note}'
