"""Every named method through the real entry point: what it trains, keeps and exports."""
import json
import shutil

import numpy as np
import pytest
from conftest import exported, read_config

from kdih import config_lib, pipeline, writers

NAMES = tuple(sorted(config_lib.base().methods))


@pytest.fixture(scope='module')
def workdir(tmp_path_factory, finished):
  """One in which teacher and heads are finished."""
  path = tmp_path_factory.mktemp('methods')
  shutil.copytree(finished, path, dirs_exist_ok=True)
  return path


@pytest.mark.parametrize('name', NAMES)
def test_a_method_trains_a_student_and_exports_it_alone(workdir, digits_dir, name):
  config = read_config(workdir, digits_dir, f'--config.student.methods={name}')
  pipeline.run(config, workdir)
  folder = workdir / 'student' / name
  result = json.loads((folder / 'result.json').read_text())
  assert result['steps'] == 6
  assert result['method']['kind'] == config.methods[name].kind
  lines = writers.read_metrics(folder / 'metrics.jsonl')
  assert np.isfinite([line['train/loss'] for line in lines if 'train/loss' in line]).all()
  alone, ce = exported(workdir, f'student/{name}'), exported(workdir, 'student/ce')
  assert {path: array.shape for path, array in alone.items()} == {
      path: array.shape for path, array in ce.items()}
  assert result['parameters'] == sum(a.size for p, a in ce.items() if p.startswith("['params']"))
