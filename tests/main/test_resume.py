"""The same command after `kill -9`, at any moment, ends as if nothing had happened."""
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from kdih.training import metric_log
from tests.helpers.runs import ROOT, exported, tiny_command

PHASES = ('teacher', 'heads', 'student/ce', 'student/kd', 'student/crd')
STEPS = 120  # A checkpoint every other step: many of the kills hit one that is being written.
KILLS = int(os.environ.get('KDIH_KILLS', 3))  # In each phase.


def start(workdir, digits_dir) -> subprocess.Popen:
  command = tiny_command(workdir, digits_dir, '--config.student.methods=ce,kd,crd')
  command[1] += f':steps={STEPS}'
  blocked = workdir.parent / 'blocked'  # Without TensorFlow it starts sooner.
  blocked.mkdir(exist_ok=True)
  (blocked / 'tensorflow.py').write_text('raise ImportError("blocked")')
  paths = os.pathsep.join([str(blocked), str(ROOT)])
  with (workdir.parent / f'{workdir.name}.log').open('a') as log:
    return subprocess.Popen([sys.executable, '-m', 'kdih.main', *command[1:]], stdout=log,
                            stderr=log, env={**os.environ, 'PYTHONPATH': paths})


def steps_of(workdir, phase) -> list[int]:
  lines = metric_log.read_metrics(workdir / phase / 'metrics.jsonl')
  return [line['step'] for line in lines if 'val/top1' in line]


def kill_in(process, workdir, phase, moment) -> bool:
  """Kills at a random moment after the phase was begun or gone on with; whether it was in it."""
  folder = workdir / phase
  before = steps_of(workdir, phase)
  deadline = time.monotonic() + 120
  while process.poll() is None and steps_of(workdir, phase) == before:
    assert time.monotonic() < deadline
    time.sleep(0.005)
  time.sleep(moment.uniform(0, 0.3))
  process.send_signal(signal.SIGKILL)
  assert process.wait() in (-signal.SIGKILL, 0)
  return not (folder / 'result.json').exists()


@pytest.mark.slow
def test_a_run_killed_at_random_moments_of_each_phase_ends_bit_identical(tmp_path, digits_dir):
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  assert start(whole, digits_dir).wait() == 0
  moment, hits = random.Random(0), dict.fromkeys(PHASES, 0)
  for phase in PHASES:
    for _ in range(KILLS):
      hits[phase] += kill_in(start(killed, digits_dir), killed, phase, moment)
  assert start(killed, digits_dir).wait() == 0
  print(f'kills within each phase: {hits}')
  assert min(hits.values()) >= min(KILLS, 2)
  assert 'Traceback' not in (tmp_path / 'killed.log').read_text()
  for phase in PHASES:
    results = [json.loads((w / phase / 'result.json').read_text()) for w in (whole, killed)]
    assert results[0]['fingerprint'] == results[1]['fingerprint']
    assert results[0]['test_last'] == results[1]['test_last']
    assert exported(whole, phase).keys() == exported(killed, phase).keys()
    for name, value in exported(whole, phase).items():
      assert value.tobytes() == exported(killed, phase)[name].tobytes(), name
    assert steps_of(killed, phase) == steps_of(whole, phase)
