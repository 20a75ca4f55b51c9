"""Measures how fast DIH trains on made images; prints a table, and writes JSON.

  python -m kdih.benchmark
  python -m kdih.benchmark --pairs=resnet20:resnet8 --batches=64 --peer=torch --out=speed.json

  --pairs      Teachers and students, TEACHER:STUDENT,...
  --batches    Global batch sizes. Default: 64,128,512
  --runs       The number of measurements of each item. Default: 5
  --precision  The type in which models compute: float32 or bfloat16. Default: float32
  --peer       torch also measures two PyTorch versions of the training; it needs
               pip install 'kdih[torch]'
  --out        The JSON file, which is written again after every pair and batch size.
  --measure    The items to measure. Default: start,bare,loop,kd,several,cached,parts

The benchmark needs neither a data set nor TensorFlow. Exit codes: 0 done, 1 a measurement failed,
2 a setting is wrong, 130 interrupted.
"""
import dataclasses
import json
import logging
import sys
from typing import Any

from kdih import errors
from kdih.benchmark import settings as settings_lib
from kdih.benchmark.settings import Settings
from kdih.runtime import environment, program

logger = logging.getLogger(__name__)


def main(argv: list[str]) -> int:
  """Runs the benchmark with the command line `argv` and returns the exit code."""
  return program.main(argv, __doc__ or '', _run)


def _run(argv: list[str]) -> int:
  settings = settings_lib.read(argv)
  environment.set_environment({'deterministic': True})  # As a run by default.
  starts: dict[tuple[str, str, int], dict] = {}  # Every pair, with the first batch size.
  if 'start' in settings.measures:  # Measured before this process occupies a device.
    from kdih.benchmark import start_time

    batch_size = settings.batches[0]
    for pair in settings.pairs:
      start = start_time.measure(*pair, batch_size, settings.precision)
      starts[(*pair, batch_size)] = {'start': start}
  from kdih.benchmark import results, roofline  # Imported here, because jax takes seconds.
  from kdih.runtime import provenance

  environment.keep_freed_memory()
  ceilings = roofline.measure_ceilings(settings.precision)
  content: dict[str, Any] = {
      **provenance.collect(), 'precision': settings.precision, 'runs': settings.runs,
      'ceilings': dataclasses.asdict(ceilings), 'pairs': []}
  for pair in settings.pairs:
    for batch_size in settings.batches:
      measured = _measure(settings, *pair, batch_size, ceilings)
      content['pairs'].append({**measured, **starts.get((*pair, batch_size), {})})
      _write(settings, content)
  print(results.table(content))
  return 0


def _measure(
    settings: Settings, teacher: str, student: str, batch_size: int, ceilings: Any
) -> dict[str, Any]:
  """Returns the measurements of a pair with a batch size."""
  from kdih.benchmark import measuring, programs, results, roofline, step_parts

  logger.info(f'benchmark: {teacher} -> {student}, batch {batch_size}')
  pair = programs.make_pair(
      teacher, student, batch_size, settings.precision, programs.made_images())
  dih = programs.Training(programs.student_problem(pair, 'dih'))
  peer = None
  if settings.peer:
    from kdih.benchmark.peer import equality
    peer = equality.Peer(pair, (teacher, student), settings.precision)
  items = [*programs.items(pair, dih, settings.measures),
           *(step_parts.items(pair) if 'parts' in settings.measures else []),
           *(peer.items() if peer else [])]
  times = measuring.measure(items, settings.runs)
  result = results.pair_results(teacher, student, batch_size, times,
                                roofline.work(dih.step, *dih.arguments()), ceilings)
  return {**result, 'peer': peer.report()} if peer else result


def _write(settings: Settings, content: dict[str, Any]) -> None:
  if not settings.out:
    return
  try:
    settings.out.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
  except OSError as error:
    raise errors.ConfigError(f'--out: {settings.out} cannot be written ({error.strerror}); choose '
                             'another file') from error


if __name__ == '__main__':
  program.end(main(sys.argv))
