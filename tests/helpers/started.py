"""Processes of `kdih.main`, started for real, alone or several that run as one; and SIGTERM."""
import contextlib
import os
import socket
import subprocess
import sys
import time

from kdih.runtime import preemption, surroundings
from kdih.training import metric_log
from tests.helpers.runs import ROOT, exported, tiny_command

RESUME = 75


def free_port() -> int:
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    return probe.getsockname()[1]


def start(workdir, digits_dir, *overrides, processes=2, steps=6) -> list[subprocess.Popen]:
  """As many processes as share four devices."""
  command = tiny_command(workdir, digits_dir, *overrides)[1:]
  command[0] += f':steps={steps}'
  together = [f'--coordinator=localhost:{free_port()}', f'--num_processes={processes}']
  if processes == 1:
    together = []
  environment = {**os.environ, 'PYTHONPATH': str(ROOT),
                 'JAX_NUM_CPU_DEVICES': str(4 // processes)}
  return [subprocess.Popen(
      [sys.executable, '-m', 'kdih.main', *command, *together,
       *([f'--process_id={number}'] if together else [])],
      env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
          for number in range(processes)]


@contextlib.contextmanager
def listening():
  """SIGTERM is heard as in a command; afterwards it ends the process again."""
  with surroundings.restored(), preemption.listening():
    yield


def finish(started) -> list[tuple[int, str, str]]:
  """(exit code, stdout, stderr) of each."""
  said = [process.communicate(timeout=300) for process in started]
  return [(process.returncode, *texts) for process, texts in zip(started, said, strict=True)]


def wait_for_step(workdir, phase, step) -> None:
  def reached():
    lines = metric_log.read_metrics(workdir / phase / 'metrics.jsonl')
    return max((line['step'] for line in lines), default=0) >= step

  deadline = time.monotonic() + 300
  while not reached():
    assert time.monotonic() < deadline
    time.sleep(0.02)


def assert_bit_identical(workdir, other, phases):
  for phase in phases:
    one, two = exported(workdir, phase), exported(other, phase)
    assert {name: value.tobytes() for name, value in one.items()} == {
        name: value.tobytes() for name, value in two.items()}
