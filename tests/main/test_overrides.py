"""What the command line sets is what a run is made with, and what its manifest says."""
import json

import numpy as np
import pytest

from kdih import main
from tests.helpers.runs import exported, tiny_command


@pytest.mark.slow
def test_overrides_arrive_in_a_run(tmp_path, digits_dir):
  workdir = tmp_path / 'w'
  assert main.main(tiny_command(
      workdir, digits_dir, '--config.student.methods=ce,mine', '--noconfig.deterministic',
      '--config.student.kwargs.width=3', '--config.methods.mine.kind=dih',
      '--config.methods.mine.alpha=0.2', '--config.methods.mine.temperature=(5.0,4.0,3.0)',
      '--config.methods.mine.reduction=sum', '--config.methods.mine.cross_entropy=once',
      '--config.methods.mine.members=cohort', '--config.methods.mine.weights=equal',
      '--config.methods.mine.gain=1', '--config.methods.mine.standardise=false',
      '--config.methods.ce.learning_rate=1e-9', '--config.student.train.weight_decay', '0',
      '--config.data.mean=0.25,')) == 0
  config = json.loads((workdir / 'manifest.json').read_text())['config']
  assert config['methods']['mine'] == dict(
      kind='dih', alpha=0.2, temperature=[5.0, 4.0, 3.0], reduction='sum', cross_entropy='once',
      members='cohort', weights='equal', gain=1, standardise=False)
  assert config['methods']['ce'] == dict(kind='ce', learning_rate=1e-9)
  assert config['student']['methods'] == ['ce', 'mine'] and config['deterministic'] is False
  assert config['student']['train']['weight_decay'] == 0 and config['data']['mean'] == [0.25]
  assert config['student']['kwargs'] == {'width': 3}
  results = json.loads((workdir / 'results.json').read_text())['student']
  assert set(results) == {'ce', 'mine'}
  still, moved = (exported(workdir, f'student/{name}') for name in ('ce', 'mine'))
  kernels = [path for path, array in still.items() if array.ndim == 4]
  assert {3} <= {still[path].shape[-1] for path in kernels}  # The width of the student.
  # At a learning rate of nothing it stays where every student starts, and the other one leaves.
  assert max(np.abs(still[path] - moved[path]).max() for path in kernels) > 1e-3
