"""The checks of a GPU, in small, on whatever device there is."""
import json
import os
import subprocess
import sys
import types

import pytest

from launch.gpu import checks
from tests.helpers.runs import ROOT


def part(name: str, file) -> None:
  subprocess.run([sys.executable, '-m', 'launch.gpu.checks', name, str(file)], check=True, cwd=ROOT,
                 env={**os.environ, 'REHEARSE': '1'})


@pytest.mark.slow
def test_a_step_is_the_same_twice_and_nothing_else_is(tmp_path):
  import numpy as np

  for name in ('one.npz', 'other.npz'):
    part('step', tmp_path / name)
  assert set(checks._apart(tmp_path / 'one.npz', tmp_path / 'other.npz').values()) == {0.0}
  with np.load(tmp_path / 'one.npz') as found:
    np.savez(tmp_path / 'other.npz', **{**found, 'update': 2 * found['update']})
  assert checks._apart(tmp_path / 'one.npz', tmp_path / 'other.npz') == {
      'loss': 0.0, 'teacher_logits': 0.0, 'student_logits': 0.0, 'update': pytest.approx(0.5)}
  assert checks._apart(tmp_path / 'one.npz', tmp_path / 'none.npz') is None


@pytest.mark.slow
def test_students_and_updates_are_timed(tmp_path):
  part('times', tmp_path / 'times.json')
  found = json.loads((tmp_path / 'times.json').read_text())
  assert list(found['over_one']) == ['vmap_1', 'vmap_2', 'updates_1', 'updates_2']
  assert found['over_one']['vmap_1'] == 1 and found['over_one']['vmap_2'] > 1


@pytest.mark.slow
def test_a_cpu_has_no_kernels(tmp_path):
  part('kernels', tmp_path / 'kernels.json')
  found = json.loads((tmp_path / 'kernels.json').read_text())
  assert (found['kernels_an_update'], found['longest']) == (0, [])


def test_kernels_are_counted_by_name():
  events = [types.SimpleNamespace(name=name, duration_ns=ns)
            for name, ns in (('conv', 3e6), ('add', 2e6), ('conv', 3e6), ('add', 2e6))]
  assert checks._counted(events, 2) == {
      'kernels_an_update': 2, 'busy_s_an_update': pytest.approx(0.005), 'longest': [
          {'name': 'conv', 'an_update': 1, 'share': pytest.approx(0.6)},
          {'name': 'add', 'an_update': 1, 'share': pytest.approx(0.4)}]}
