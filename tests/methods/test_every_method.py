"""Every named method through the real entry point: what it trains, keeps and exports."""
import dataclasses
import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from kdih import main
from kdih.cohort.members import make_teach
from kdih.config import fields
from kdih.data import datasets, source
from kdih.phases import networks, student as student_lib
from kdih.phases.experiment import Experiment
from kdih.phases.student import run_student
from kdih.runtime.workdir import Workdir
from kdih.training import checkpoints, orbax_files
from tests.helpers import method_terms
from tests.helpers.runs import ROOT, exported, read_config, tiny_command


@pytest.fixture(scope='module')
def workdir(tmp_path_factory, finished):
  """One in which teacher and heads are finished."""
  path = tmp_path_factory.mktemp('methods')
  shutil.copytree(finished, path, dirs_exist_ok=True)
  return path


@pytest.mark.slow
@pytest.mark.parametrize('name', sorted(fields.base().methods))
def test_a_method_trains_a_student_and_exports_it_alone(workdir, digits_dir, name):
  config = read_config(workdir, digits_dir, f'--config.student.methods={name}')
  main.run(config, workdir)
  folder = workdir / 'student' / name
  result = json.loads((folder / 'result.json').read_text())
  assert result['steps'] == 6
  assert result['method']['kind'] == config.methods[name].kind
  method_terms.logged(folder, method_terms.of(config.methods.to_dict(), name))
  alone, ce = exported(workdir, f'student/{name}'), exported(workdir, 'student/ce')
  assert {path: array.shape for path, array in alone.items()} == {
      path: array.shape for path, array in ce.items()}
  assert result['parameters'] == sum(a.size for p, a in ce.items() if p.startswith("['params']"))


@pytest.fixture
def experiment(tmp_path, finished, digits_dir):
  """A run in which teacher and heads are finished, and no student."""
  path = tmp_path / 'run'
  shutil.copytree(finished, path, ignore=shutil.ignore_patterns('student'))
  config = read_config(path, digits_dir, '--config.student.methods=dih,fitnets')
  builder = datasets.open_builder(config.data)
  built = networks.build(config, datasets.describe(builder, config.data))
  return Experiment(config, built, Workdir(path), source.open_splits(builder, config.data))


def test_images_to_validate_with_are_no_negatives(experiment):
  found, hidden = experiment.data.train_labels(), experiment.data.validation_subset
  images = source.open_split(datasets.open_builder(experiment.config.data), 'train_split',
                             experiment.config.data)
  assert len(hidden) == 40 and (found[hidden] == -1).all()
  shown = np.setdiff1d(np.arange(200), hidden)
  np.testing.assert_array_equal(found[shown], images.labels()[shown])


def test_members_are_weighted_by_their_accuracy_on_the_validation_split(experiment, monkeypatch):
  heads = experiment.workdir.result('heads')
  val, test = ([heads['members'][name][split]['top1'] for name in ('stage1', 'stage2', 'final')]
               for split in ('val', 'test_best_val'))
  accuracy = heads['weights']['accuracy']
  np.testing.assert_allclose(accuracy, np.array(val) / np.mean(val), rtol=1e-5)
  assert not np.allclose(accuracy, np.array(test) / np.mean(test), rtol=1e-2)

  def stop(student, taps, method, signals, frozen, *args, **kwargs):
    received.update(frozen['weights'])
    raise KeyboardInterrupt

  received = {}
  monkeypatch.setattr(student_lib, 'student_task', stop)
  with pytest.raises(KeyboardInterrupt):
    run_student(experiment, 'dih')
  assert received.keys() == {'accuracy', 'learnt'}
  for rule, weights in received.items():
    np.testing.assert_allclose(weights, heads['weights'][rule], rtol=1e-6)


@pytest.mark.slow
def test_the_loss_itself_goes_on_from_what_was_prepared(experiment, monkeypatch):
  begun, ended, train = {}, {}, Experiment.train
  first, second = 'student/fitnets/prepare', 'student/fitnets'

  def recorded(self, phase, problem):
    begun[phase] = jax.device_get(problem.variables)
    if phase == second:
      raise KeyboardInterrupt
    # The last variables, not the best: a hint does not aim at accuracy.
    ended[phase] = dataclasses.replace(train(self, phase, problem), best=None)
    return ended[phase]

  monkeypatch.setattr(Experiment, 'train', recorded)
  with pytest.raises(KeyboardInterrupt):
    run_student(experiment, 'fitnets')
  jax.tree.map(np.testing.assert_array_equal, begun[second], ended[first].last)
  for side, name in (('student', 'Conv_0'), ('method', 'regressor')):
    before, after = (jax.tree.leaves(begun[phase]['params'][side][name])[-1]
                     for phase in (first, second))
    assert not np.array_equal(before, after)


@pytest.mark.parametrize('taught_by', ['teacher', 'cohort'])
def test_the_teacher_returns_the_same_for_an_image_whatever_else_is_in_the_batch(
    experiment, taught_by):
  built, path = experiment.networks, experiment.workdir.path
  frozen = {name: orbax_files.restore(path / name / 'variables') for name in ('teacher', 'heads')}
  teach = jax.jit(lambda images: make_teach(
      taught_by, built.teacher, tuple(built.teacher_taps), built.heads, tuple(built.taps))(
          frozen, images))
  images = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype(np.float32)
  together, alone = teach(images), teach(images[:1])
  if taught_by == 'cohort':  # stage1, stage2, final
    assert together.members.shape == (4, 3, 10)
    np.testing.assert_array_equal(together.members[:, 2], together.logits)
  else:
    assert together.members is None
  jax.tree.map(lambda all_of, one: np.testing.assert_allclose(all_of[:1], one, atol=1e-5),
               together, alone)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['sp', 'crd', 'rkd', 'vid'])
def test_one_device_and_four_teach_the_same(workdir, tmp_path, finished, digits_dir, name):
  """What couples the images of a batch sees all of them, on any number of devices."""
  shutil.copytree(finished, tmp_path / 'one')
  command = tiny_command(tmp_path / 'one', digits_dir, f'--config.student.methods={name}')
  subprocess.run([sys.executable, '-m', 'kdih.main', *command[1:]], check=True,
                 env={**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_NUM_CPU_DEVICES': '1'})
  if not (workdir / f'student/{name}/result.json').exists():
    main.run(read_config(workdir, digits_dir, f'--config.student.methods={name}'), workdir)
  one, four = (exported(path, f'student/{name}') for path in (tmp_path / 'one', workdir))
  for path, array in four.items():
    np.testing.assert_allclose(one[path], array, rtol=1e-5, atol=2e-5, err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize('name, phase', [
    ('crd', ''), ('fitnets', '/prepare'), ('fitnets', ''), ('takd', '/assistant2')])
def test_what_is_trained_beside_the_student_is_resumed(
    workdir, tmp_path, finished, digits_dir, monkeypatch, name, phase):
  """Cut off right after a checkpoint, the phase ends with the same bits: student and beside."""
  again = tmp_path / 'again'
  shutil.copytree(finished, again)
  config = read_config(again, digits_dir, f'--config.student.methods={name}')
  folder = f'student/{name}{phase}/checkpoints'
  save = checkpoints.Checkpoints.save

  def save_and_stop(self, state, *args, **kwargs):
    save(self, state, *args, **kwargs)
    if int(state.step) == 4 and (again / folder).exists() and not (again / 'cut').exists():
      (again / 'cut').touch()
      raise KeyboardInterrupt

  monkeypatch.setattr(checkpoints.Checkpoints, 'save', save_and_stop)
  with pytest.raises(KeyboardInterrupt):
    main.run(config, again)
  assert not (again / f'student/{name}{phase}/result.json').exists()
  main.run(config, again)
  monkeypatch.undo()
  if not (workdir / f'student/{name}/result.json').exists():
    main.run(read_config(workdir, digits_dir, f'--config.student.methods={name}'), workdir)
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
