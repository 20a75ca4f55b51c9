"""What was measured, as JSON and as a table."""
from collections.abc import Iterable
from typing import Any

from kdih.benchmark import programs, step_parts
from kdih.benchmark.measuring import Times
from kdih.benchmark.roofline import Ceilings, Work
from kdih.data import augment

_LEGEND = """
bare: the compiled DIH step, again and again on one batch. loop: DIH as a run trains it: the main
loop, with the in-memory loader, sampling and metrics, without evaluation and checkpoints. kd: the
compiled step of plain KD. several: three students that share each batch's cohort. cached: as loop,
with what the cohort says looked up in a cache of all views, whose making is not counted. input,
teacher, heads, student (forward, backward and update): the parts of the DIH step, each a program of
its own. sweep_over_cached is computed of these: three seeds of three methods that read logits, of
200 epochs each, without over with such a cache and its making.
torch_paper, torch_tuned: the same training in PyTorch, crop, flip and normalisation included."""


def of_pair(
    teacher: str, student: str, batch_size: int, times: dict[str, Times], work: Work,
    ceilings: Ceilings,
) -> dict[str, Any]:
  """What there is to say of a pair at a batch size."""
  entry: dict[str, Any] = {
      'teacher': teacher, 'student': student, 'batch': batch_size,
      'items': {name: of_item(batch_size, measured) for name, measured in times.items()},
      'ratios': ratios(times),
      'cost': {'flops': work.flops, 'bytes': work.bytes, 'temporary_bytes': work.memory},
      'roofline': {
          'seconds': work.seconds(ceilings), 'bound': work.bound(ceilings),
          'fraction': work.seconds(ceilings) / times['bare'].median},
  }
  if {'loop', 'student'} <= times.keys():
    entry['shares'] = step_parts.shares(times)
  return entry


def of_item(batch_size: int, times: Times) -> dict[str, Any]:
  """Seconds of a step, and examples a second."""
  return {'median_s': times.median, 'quartiles_s': list(times.quartiles),
          'runs_s': list(times.seconds), 'examples_per_second': batch_size / times.median}


def ratios(times: dict[str, Times]) -> dict[str, float]:
  """How the medians compare, by what is compared."""
  pairs = {
      'loop_efficiency': ('bare', 'loop'),  # Bare step over step of the loop.
      'dih_over_kd': ('bare', 'kd'),
      'several_over_one': ('several', 'bare'),
      'loop_over_cached': ('loop', 'cached'),
      'torch_paper_over_loop': ('torch_paper', 'loop'),
      'torch_tuned_over_loop': ('torch_tuned', 'loop'),
      'torch_paper_over_cached': ('torch_paper', 'cached'),
      'torch_tuned_over_cached': ('torch_tuned', 'cached'),
  }
  found = {name: times[one].median / times[other].median for name, (one, other) in pairs.items()
           if one in times and other in times}
  if {'loop', 'kd', 'cached', 'input', 'teacher', 'heads'} <= times.keys():
    found['sweep_over_cached'] = _sweep_over_cached(
        {name: measured.median for name, measured in times.items()})
  return found


def _sweep_over_cached(seconds: dict[str, float]) -> float:
  """Computed: a sweep's time over that of one with a cache of all views, its making included.

  The sweep is of three seeds of DIH and of two methods that cost as much as KD.
  """
  epochs, seeds = 200, 3
  taught = epochs * seeds * (seconds['loop'] + 2 * seconds['kd'])
  made = augment.make_preprocess(**programs.AUGMENTATION).num_views * sum(
      seconds[part] for part in ('input', 'teacher', 'heads'))
  return taught / (made + epochs * seeds * 3 * seconds['cached'])


def table(content: dict[str, Any]) -> str:
  """All that was measured, for people."""
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
  yield f'  {"":12}{"ms a step":>12}{"quartiles":>22}{"examples/s":>14}'
  for name, item in entry['items'].items():
    first, third = (f'{1000 * value:,.2f}' for value in item['quartiles_s'])
    yield (f'  {name:12}{1000 * item["median_s"]:12,.2f}{first + " to " + third:>22}'
           f'{item["examples_per_second"]:14,.0f}')
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
