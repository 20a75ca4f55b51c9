"""Runs the harness as a program: its processes must begin before jax computes anything."""
import json
import os
import subprocess
import sys

import pytest

from tests.helpers.runs import ROOT


@pytest.fixture
def in_a_child():
  """A function that returns what another one returns, which runs in a child.

  What stays in a process stays there: hooks, limits, handlers. JSON must be able to hold the value.
  """
  def call(function):
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
      try:
        os.write(writing, json.dumps(function()).encode())
      finally:
        os._exit(0)  # pytest goes on in the parent alone.
    os.close(writing)
    with open(reading, 'rb') as pipe:
      text = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(text)

  return call


@pytest.fixture(scope='session')
def outcomes(tmp_path_factory):
  """A function that makes some tries, and returns what the summary says."""
  def outcomes_of(*arguments: str) -> dict:
    folder = tmp_path_factory.mktemp('chaos')
    ended = subprocess.run(
        [sys.executable, '-m', 'tests.chaos', f'--output={folder / "chaos.json"}', *arguments],
        cwd=ROOT, env={**os.environ, 'PYTHONPATH': str(ROOT)}, stderr=subprocess.STDOUT,
        stdout=subprocess.PIPE, text=True, check=False)
    assert ended.returncode in (0, 1) and 'Traceback' not in ended.stdout.splitlines()[-1], (
        ended.stdout[-3000:])
    return json.loads((folder / 'chaos.json').read_text())

  return outcomes_of
