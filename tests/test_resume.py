"""The same command after `kill -9` ends as if nothing had happened."""
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import TESTS, exported, tiny_command

from kdih import writers

PHASES = ('teacher', 'heads', 'student/ce', 'student/kd', 'student/dih')
STEPS = 40


def start(workdir, digits_dir) -> subprocess.Popen:
  command = tiny_command(workdir, digits_dir)
  command[1] += f':steps={STEPS}'
  paths = str(TESTS)
  return subprocess.Popen([sys.executable, '-m', 'kdih.main', *command[1:]],
                          env={**os.environ, 'PYTHONPATH': paths},
                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def evaluations(workdir, phase) -> list[int]:
  lines = writers.read_metrics(workdir / phase / 'metrics.jsonl')
  return [line['step'] for line in lines if 'val/top1' in line]


def kill_within(process, workdir, phase, after_step) -> None:
  """Kills once `phase` has passed `after_step`, and checks that it had not come to its end."""
  while process.poll() is None and max(evaluations(workdir, phase), default=0) < after_step:
    time.sleep(0.005)
  process.send_signal(signal.SIGKILL)
  assert process.wait() == -signal.SIGKILL
  assert not (workdir / phase / 'result.json').exists()


@pytest.mark.slow
def test_a_run_killed_once_in_each_phase_ends_bit_identical(tmp_path, digits_dir):
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  assert start(whole, digits_dir).wait() == 0
  for number, phase in enumerate(PHASES):
    kill_within(start(killed, digits_dir), killed, phase, 6 + 4 * number)
  assert start(killed, digits_dir).wait() == 0
  for phase in PHASES:
    results = [json.loads((w / phase / 'result.json').read_text()) for w in (whole, killed)]
    assert results[0]['fingerprint'] == results[1]['fingerprint']
    assert results[0]['test_last'] == results[1]['test_last']
    assert exported(whole, phase).keys() == exported(killed, phase).keys()
    for name, value in exported(whole, phase).items():
      assert value.tobytes() == exported(killed, phase)[name].tobytes(), name
    assert evaluations(killed, phase) == evaluations(whole, phase)
