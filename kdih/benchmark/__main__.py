"""Measures how fast DIH trains, on made images; writes a table, and JSON.

  python -m kdih.benchmark
  python -m kdih.benchmark --pairs=resnet20:resnet8 --batches=64 --peer=torch --out=speed.json

  --pairs      Of teacher and student, TEACHER:STUDENT,...
  --batches    Global batch sizes: 64,128,512
  --runs       How often each thing is measured, in turns: 5
  --precision  That models compute in: float32 or bfloat16
  --peer       torch: the same training in PyTorch too, in two forms; pip install 'kdih[torch]'
  --out        A file for the JSON, written anew after every pair and batch size.
  --measure    What to measure: start,bare,loop,kd,several,cached,parts

It needs neither a data set nor TensorFlow. Exit codes: 0 done, 1 a measurement failed, 2 a setting
is wrong, 130 interrupted.
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
  """Runs what the command line `argv` asks for and returns the exit code."""
  return program.main(argv, __doc__ or '', _run)


def _run(argv: list[str]) -> int:
  environment.set_environment({'deterministic': True})  # The default of a run.
  settings = settings_lib.read(argv)
  starts: dict[tuple[str, str, int], dict] = {}  # Of every pair, at the first batch size.
  if 'start' in settings.measures:  # While this process holds no device yet.
    from kdih.benchmark import start_time

    batch_size = settings.batches[0]
    for pair in settings.pairs:
      start = start_time.measure(*pair, batch_size, settings.precision)
      starts[(*pair, batch_size)] = {'start': start}
  from kdih.benchmark import results, roofline  # These import jax, which takes seconds.
  from kdih.runtime import provenance

  environment.keep_freed_memory()
  ceilings = roofline.measure_ceilings(settings.precision)
  content: dict[str, Any] = {
      **provenance.collect(), 'precision': settings.precision, 'runs': settings.runs,
      'ceilings': dataclasses.asdict(ceilings), 'pairs': []}
  for pair in settings.pairs:
    for batch_size in settings.batches:
      found = _measure(settings, *pair, batch_size, ceilings)
      content['pairs'].append({**found, **starts.get((*pair, batch_size), {})})
      _write(settings, content)
  print(results.table(content))
  return 0


def _measure(
    settings: Settings, teacher: str, student: str, batch_size: int, ceilings: Any
) -> dict[str, Any]:
  """One pair at one batch size."""
  from kdih.benchmark import measuring, programs, results, roofline, step_parts

  logger.info(f'benchmark: {teacher} -> {student}, batch {batch_size}')
  lab = programs.make_lab(teacher, student, batch_size, settings.precision, programs.made_images())
  dih = programs.Training(programs.student_problem(lab, 'dih'))
  peer = None
  if settings.peer:
    from kdih.benchmark.peer import equality
    peer = equality.Peer(lab, (teacher, student), settings.precision)
  items = [*programs.items(lab, dih, settings.measures),
           *(step_parts.items(lab) if 'parts' in settings.measures else []),
           *(peer.items() if peer else [])]
  times = measuring.measure(items, settings.runs)
  found = results.of_pair(teacher, student, batch_size, times,
                          roofline.work(dih.step, *dih.arguments()), ceilings)
  return {**found, 'peer': peer.report()} if peer else found


def _write(settings: Settings, content: dict[str, Any]) -> None:
  if not settings.out:
    return
  try:
    settings.out.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
  except OSError as error:
    raise errors.ConfigError(f'--out: {settings.out} cannot be written ({error.strerror}); choose '
                             'another file') from error


if __name__ == '__main__':
  sys.exit(main(sys.argv))
