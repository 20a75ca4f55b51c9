"""Students that learn from the same batches as one program: seeds, and variants of methods."""
import functools
import json
import os
import shutil
import signal

import jax
import numpy as np
import optax
import pytest

from kdih import errors
from kdih.data import sampling
from kdih.phases import networks
from kdih.phases.teacher import teacher_task
from kdih.runtime import devices, preemption
from kdih.sweep import plan
from kdih.training import checkpoints, metric_log, state as state_lib
from kdih.training.step import compile_train_step, make_train_step
from kdih.training.together import Students
from tests.helpers import sweeps
from tests.helpers.arrays import PREPROCESS, Arrays, fed
from tests.helpers.runs import exported, read_config
from tests.helpers.slow import slow
from tests.helpers.sweeps import PAIR, results
from tests.helpers.tiny_nets import NoTaps, TinyNet

SEEDS = (1, 2, 3)
TOGETHER = ('--seeds=1,2,3', '--config.data.order_seed=4', '--config.student.train.length=7')


@functools.cache
def compiled(model, rates, way):
  """(loader, students, step), of a student for each learning rate; alone where `way` is None."""
  loader, task = Arrays(64), teacher_task(model, PREPROCESS)
  steps = {rate: make_train_step(task, optax.sgd(rate, momentum=0.9), steps_per_epoch=2.0,
                                 accumulate=2) for rate in rates}
  if way is None:
    rate, = rates
    return loader, None, compile_train_step(steps[rate], task, loader)
  students = Students([steps[rate] for rate in rates], way)
  return loader, students, compile_train_step(
      students.train_step, task, loader, students.first)


def trained(model, seeds, way, rates=None):
  """The states, in numpy, of students that see the same two batches; and their metrics."""
  loader, students, step = compiled(model, rates or (0.1,) * len(seeds), way)
  tx = optax.sgd(0.1, momentum=0.9)
  each = [state_lib.create(networks.initialise(model, jax.random.key(seed), (8, 8, 1)), tx, seed, 9)
          for seed in seeds]
  batches = sampling.train_batches(np.arange(64, dtype=np.int32), 32, 9, 0, 2)
  states, metrics = step(devices.replicate(students.join(each) if students else each[0]), {},
                         loader.resident, next(fed(batches, [2])))
  return jax.device_get((students.split(states), metrics) if students else (states, metrics))


@pytest.mark.parametrize('model', [
    NoTaps(10), slow(TinyNet(10, axis_name=devices.AXIS))])
@pytest.mark.parametrize('way', ['unrolled', slow('vmap')])
def test_students_that_learn_together_are_those_that_learn_alone(model, way):
  together, metrics = trained(model, SEEDS, way)
  assert len(metrics) == 3
  for seed, one, values in zip(SEEDS, together, metrics, strict=True):
    alone, same = trained(model, (seed,), None)
    assert values.keys() == same.keys() == {'loss', 'ce', 'top1'}
    for name, numbers in values.items():
      assert numbers.shape == (2,)
      np.testing.assert_allclose(numbers, same[name], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), one, alone)
    if way == 'unrolled':  # Without XLA's optimisation, as here, to the bit.
      jax.tree.map(np.testing.assert_array_equal, (one, values), (alone, same))
    assert int(one.step) == 2 and int(one.seed) == seed


@pytest.mark.slow
@pytest.mark.parametrize('way', ['unrolled', 'vmap'])
def test_each_learns_at_its_own_rate(way):
  """With vmap those of the same rate are one, and the third is on its own."""
  rates, model = (0.1, 0.1, 0.02), NoTaps(10)
  together, _ = trained(model, SEEDS, way, rates)
  for seed, rate, one in zip(SEEDS, rates, together, strict=True):
    alone, _ = trained(model, (seed,), None, (rate,))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, alone)


def test_a_cpu_unrolls(monkeypatch):
  one, other = object(), object()
  assert Students([one, one, other], 'auto').sizes == (1, 1, 1)
  monkeypatch.setattr(devices, 'on_cpu', lambda: False)
  assert Students([one, one, other], 'auto').sizes == (2, 1)
  assert Students([one, other, one], 'auto').sizes == (1, 1, 1)  # Not one after the other.
  assert Students([one, one, other], 'unrolled').sizes == (1, 1, 1)


def test_students_are_stacked_and_come_apart_again():
  def times(factor):
    def step(state, frozen, batch, signal):
      w = factor * state['w'] + frozen + batch + signal
      return {'w': w}, {'loss': w.sum()}

    return step

  one, ten, hundred = times(1), times(10), times(100)
  students = Students([one, one, ten, hundred], 'vmap')
  joined = students.join([{'w': np.full(3, number)} for number in range(4)])
  assert [tree['w'].shape for tree in joined] == [(2, 3), (3,), (3,)]
  assert int(students.first(joined)['w'][0]) == 0
  states, metrics = students.train_step(joined, 0.25, 0.5, 1)
  assert [float(tree['w'][0]) for tree in students.split(states)] == [1.75, 2.75, 21.75, 301.75]
  assert [float(of_one['loss']) for of_one in metrics] == [5.25, 8.25, 65.25, 905.25]


def test_seeds_that_see_other_batches_are_not_trained_together():
  config = read_config('unused', 'unused', '--config.sweep.together=true')
  with pytest.raises(errors.ConfigError, match='set config.data.order_seed to a number from 0'):
    plan.runs(config, plan.pairs(config))
  config.data.order_seed = 0
  groups = plan.runs(config, plan.pairs(config))
  assert [[run.seed for run in runs] for runs in groups] == [[30, 50, 67]] * 3


def test_variants_of_one_seed_see_the_same_batches_anyway():
  config = read_config('unused', 'unused', '--config.sweep.together=true',
                       '--config.sweep.seeds=(30,)', '--config.sweep.alphas=(0.1, 0.5)')
  config.sweep.methods = ('ce', 'kd')
  groups = plan.runs(config, plan.pairs(config))
  assert [[run.method for run in runs] for runs in groups] == [['ce'], ['kd', 'kd_alpha=5e-1']]


@pytest.fixture(scope='module')
def taught(tmp_path_factory, digits_dir):
  """A sweep in which the teacher has been trained, and a student by labels. Not to be changed."""
  workdir = tmp_path_factory.mktemp('taught')
  assert sweeps.run(workdir, digits_dir, '--methods=kd', '--seeds=9', *TOGETHER[1:]) == 0
  return workdir


@pytest.fixture(scope='module')
def alone(taught, tmp_path_factory, digits_dir):
  """The seeds, one by one. Not to be changed."""
  workdir = tmp_path_factory.mktemp('alone')
  shutil.copytree(taught, workdir, dirs_exist_ok=True)
  assert sweeps.run(workdir, digits_dir, '--methods=kd,fitnets', *TOGETHER) == 0
  return workdir


def metrics(folder):
  return [{key: value for key, value in line.items() if key != 'examples_per_second'}
          for line in metric_log.read_metrics(folder / 'metrics.jsonl')]


@pytest.mark.slow
@pytest.mark.parametrize('way', ['unrolled', 'vmap'])
def test_a_sweep_together_leaves_what_it_leaves_seed_by_seed(
    taught, alone, tmp_path, digits_dir, capsys, way):
  workdir = shutil.copytree(taught, tmp_path / 'w')
  capsys.readouterr()
  assert sweeps.run(workdir, digits_dir, '--methods=kd,fitnets', *TOGETHER, '--together',
                    f'--together_by={way}') == 0
  assert 'go on alone' not in capsys.readouterr().err
  assert results(workdir) == results(alone)
  for seed in SEEDS:
    one, other = (path / PAIR / f'seed{seed}' for path in (workdir, alone))
    for phase in ('student/kd', 'student/fitnets/prepare', 'student/fitnets'):
      assert {p.name for p in (one / phase / 'checkpoints').iterdir()} == {
          p.name for p in (other / phase / 'checkpoints').iterdir()}
      for line, expectation in zip(metrics(one / phase), metrics(other / phase), strict=True):
        assert line == pytest.approx(expectation, rel=1e-4)
    for phase in ('student/kd', 'student/fitnets'):
      for name, array in exported(one, phase).items():
        np.testing.assert_allclose(array, exported(other, phase)[name], rtol=1e-5, atol=1e-5)
      found, expected = (json.loads((path / phase / 'result.json').read_text())
                         for path in (one, other))
      assert found.keys() == expected.keys()
      assert [found[key] for key in ('steps', 'seed', 'rewinds', 'parameters')] == [
          expected[key] for key in ('steps', 'seed', 'rewinds', 'parameters')]
      assert found['test_last']['top1'] == pytest.approx(expected['test_last']['top1'], abs=0.021)
      assert found['seconds'] > 0


@pytest.mark.slow
@pytest.mark.parametrize('moment', ['asked', 'saving'])
def test_a_group_that_was_cut_off_ends_with_the_same_bits(
    taught, tmp_path, digits_dir, monkeypatch, capsys, moment):
  """Asked to stop within an epoch, and killed when one of the seeds has saved its checkpoint."""
  whole, cut = (shutil.copytree(taught, tmp_path / name) for name in ('whole', 'cut'))
  options = ('--methods=kd', *TOGETHER, '--together')
  assert sweeps.run(whole, digits_dir, *options) == 0
  if moment == 'asked':
    batches = sampling.train_batches

    def interrupted(subset, batch_size, seed, start, stop):
      for step, batch in enumerate(batches(subset, batch_size, seed, start, stop), start):
        if step == 4:
          os.kill(os.getpid(), signal.SIGTERM)
        yield batch

    with monkeypatch.context() as patch:
      patch.setattr(sampling, 'train_batches', interrupted)
      assert sweeps.run(cut, digits_dir, *options) == 75
    preemption.listen()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    saved = [5, 5, 5]
  else:
    save = checkpoints.Checkpoints.save

    def save_and_die(self, state, *args, **kwargs):
      save(self, state, *args, **kwargs)
      if int(state.step) == 4 and int(state.seed) == 1:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
      patch.setattr(checkpoints.Checkpoints, 'save', save_and_die)
      assert sweeps.run(cut, digits_dir, *options) == 130
    saved = [4, 2, 2]
  folders = [cut / PAIR / f'seed{seed}' for seed in SEEDS]
  assert [max(int(path.name) for path in (folder / 'student/kd/checkpoints').glob('[0-9]*'))
          for folder in folders] == saved
  capsys.readouterr()
  assert sweeps.run(cut, digits_dir, *options) == 0
  assert 'alone' not in capsys.readouterr().err
  for seed, folder in zip(SEEDS, folders, strict=True):
    one, other = exported(folder, 'student/kd'), exported(
        whole / PAIR / f'seed{seed}', 'student/kd')
    assert {k: v.tobytes() for k, v in one.items()} == {k: v.tobytes() for k, v in other.items()}


@pytest.mark.slow
def test_a_loss_that_is_not_finite_fails_each_seed_on_its_own(
    taught, tmp_path, digits_dir, capsys):
  workdir = shutil.copytree(taught, tmp_path / 'w')
  assert sweeps.run(workdir, digits_dir, '--methods=kd_matched', *TOGETHER, '--together',
                    '--config.methods.kd_matched.learning_rate=1e9') == 1
  output = capsys.readouterr().err
  assert 'each student trains alone' in output
  assert output.endswith('kdih: 3 failed; the same command tries them again\n')
