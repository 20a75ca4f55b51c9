"""Stands in for the Python of a worker: ends as $CLOUD/outcomes.json says, run by run.

An outcome is an exit code, a list with one for each worker, 'preempted' (the VM is taken away) or
'wait' (until SIGTERM: 75). What it was called with is added to $CLOUD/started.<worker>.
"""
import json
import os
import pathlib
import signal
import sys

CLOUD, HOME = pathlib.Path(os.environ['CLOUD']), pathlib.Path(os.environ['HOME'])


def save(*_) -> None:
  print('saved', flush=True)
  sys.exit(75)


def main(argv: list[str]) -> int:
  started = CLOUD / f'started.{HOME.name}'
  number = len(started.read_text().splitlines()) if started.exists() else 0
  signal.signal(signal.SIGTERM, save)
  with started.open('a') as lines:
    lines.write(json.dumps(argv) + '\n')
  outcome = json.loads((CLOUD / 'outcomes.json').read_text())[number]
  print(f'run {number} says: {outcome}', flush=True)
  if isinstance(outcome, list):
    outcome = outcome[int(HOME.name.removeprefix('worker'))]
  if outcome == 'wait':
    signal.pause()
  if outcome == 'preempted':
    (HOME.parent / 'state').write_text('PREEMPTED')
    return 143
  return outcome


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
