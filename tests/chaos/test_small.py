"""A few of the tries that `python -m tests.chaos` makes by the hundred."""
import json
import os
import subprocess
import sys

import pytest

from tests.helpers.runs import ROOT


@pytest.mark.slow
def test_what_is_harmed_ends_as_if_it_had_not_been(tmp_path):
  """The harness runs as a program: its processes must begin before jax computes anything."""
  ended = subprocess.run(
      [sys.executable, '-m', 'tests.chaos', f'--output={tmp_path / "chaos.json"}',
       '--kinds=rewind,streaming,config,data,images', '--kills=4', '--faults=11', '--mutations=20'],
      cwd=ROOT, env={**os.environ, 'PYTHONPATH': str(ROOT)}, stderr=subprocess.STDOUT,
      stdout=subprocess.PIPE, text=True, check=False)
  summary = json.loads((tmp_path / 'chaos.json').read_text())
  assert summary['failures'] == {} and ended.returncode == 0, ended.stdout[-20000:]
  assert {part: sum(sum(outcomes.values()) for outcomes in kinds.values())
          for part, kinds in summary['outcomes'].items()} == {
              'kills': 4, 'faults': 11, 'mutations': 20}
  assert set(summary['outcomes']['mutations']) == {'config', 'data', 'images'}
  assert summary['killed'] >= 4
