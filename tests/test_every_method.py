"""Every named method through the real entry point: what it trains, keeps and exports."""
import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import TESTS, exported, read_config, tiny_command

from kdih import checkpoint, config_lib, pipeline, writers

QUICK = ('at', 'crd', 'dih_at', 'dml', 'fitnets')  # One of each sort; the others are slow.
NAMES = tuple(name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
              for name in sorted(config_lib.base().methods))


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


@pytest.mark.slow
@pytest.mark.parametrize('name', ['sp', 'crd', 'rkd', 'vid'])
def test_one_device_and_four_teach_the_same(workdir, tmp_path, finished, digits_dir, name):
  """What couples the images of a batch sees all of them, on any number of devices."""
  shutil.copytree(finished, tmp_path / 'one')
  command = tiny_command(tmp_path / 'one', digits_dir, f'--config.student.methods={name}')
  subprocess.run([sys.executable, '-m', 'kdih.main', *command[1:]], check=True,
                 env={**os.environ, 'PYTHONPATH': str(TESTS), 'JAX_NUM_CPU_DEVICES': '1'})
  if not (workdir / f'student/{name}/result.json').exists():
    pipeline.run(read_config(workdir, digits_dir, f'--config.student.methods={name}'), workdir)
  one, four = (exported(path, f'student/{name}') for path in (tmp_path / 'one', workdir))
  for path, array in four.items():
    np.testing.assert_allclose(one[path], array, atol=2e-5, err_msg=path)


@pytest.mark.parametrize('name, phase', [
    ('crd', ''), *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        ('fitnets', '/prepare'), ('fitnets', ''), ('takd', '/assistant2')))])
def test_what_is_trained_beside_the_student_is_resumed(
    workdir, tmp_path, finished, digits_dir, monkeypatch, name, phase):
  """Cut off right after a checkpoint, the phase ends with the same bits: student and beside."""
  again = tmp_path / 'again'
  shutil.copytree(finished, again)
  config = read_config(again, digits_dir, f'--config.student.methods={name}')
  folder = f'student/{name}{phase}/checkpoints'
  save = checkpoint.Checkpoints.save

  def save_and_stop(self, state, meta, metrics):
    save(self, state, meta, metrics)
    if int(state.step) == 4 and (again / folder).exists() and not (again / 'cut').exists():
      (again / 'cut').touch()
      raise KeyboardInterrupt

  monkeypatch.setattr(checkpoint.Checkpoints, 'save', save_and_stop)
  with pytest.raises(KeyboardInterrupt):
    pipeline.run(config, again)
  assert not (again / f'student/{name}{phase}/result.json').exists()
  pipeline.run(config, again)
  monkeypatch.undo()
  if not (workdir / f'student/{name}/result.json').exists():
    pipeline.run(read_config(workdir, digits_dir, f'--config.student.methods={name}'), workdir)
  assert last_state(again / folder) == last_state(workdir / folder)
  whole, cut = (exported(path, f'student/{name}') for path in (workdir, again))
  assert {path: array.tobytes() for path, array in cut.items()} == {
      path: array.tobytes() for path, array in whole.items()}


def last_state(folder) -> dict[str, bytes]:
  """Every leaf of the last checkpoint, those of the method with them."""
  with ocp.CheckpointManager(folder) as manager:
    state = manager.restore(manager.latest_step(), args=ocp.args.Composite(
        state=ocp.args.StandardRestore()))['state']
  leaves = jax.tree_util.tree_leaves_with_path(state)
  found = {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}
  assert any("['method']" in path for path in found) or 'takd' in str(folder)
  return found
