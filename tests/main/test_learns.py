"""A run learns: accurate on real digits, with losses that fall and parameters that change."""
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from kdih.data.made import made_splits
from kdih.data.spec import DataSpec
from kdih.phases import networks
from kdih.phases.experiment import Experiment
from kdih.phases.heads import heads_problem
from kdih.phases.student import student_problem, teacher_of
from kdih.phases.teacher import teacher_problem
from kdih.runtime import devices
from kdih.runtime.workdir import Workdir
from kdih.training import metric_log, state as state_lib
from tests.helpers.runs import ROOT, read_config
from tests.helpers.slow import slow

PHASES = ('teacher', 'heads', 'student/ce', 'student/kd', 'student/dih')
# Epochs, and learning rates that two convolutions can take.
LENGTHS = {'teacher': (10, 0.3), 'heads': (4, 0.1), 'student': (10, 0.3)}


@pytest.fixture(scope='module')
def learnt(tmp_path_factory, digits_dir):
  """The workdir of a short run of `configs/digits.py`, started as a user would."""
  workdir = tmp_path_factory.mktemp('learnt')
  net = 'tests.helpers.tiny_nets:TinyNet'
  overrides = [f'teacher.name={net}', 'teacher.kwargs.width=32', f'student.name={net}',
               'student.kwargs.width=16', f'data.data_dir={digits_dir}']
  for phase, (length, rate) in LENGTHS.items():
    overrides += [f'{phase}.train.{setting}' for setting in (
        f'length={length}', f'evaluate_every={length}', f'learning_rate={rate}',
        'schedule=cosine', 'milestones=1')]  # The milestones of the config lie behind the end.
  subprocess.run(
      [sys.executable, '-m', 'kdih.main', '--config=configs/digits.py', '--config.seed=30',
       f'--workdir={workdir}', *(f'--config.{item}' for item in overrides)], cwd=ROOT, check=True,
      env={**os.environ, 'PYTHONPATH': str(ROOT), 'XLA_FLAGS': ''})  # With XLA's optimizations.
  return workdir


def result(workdir, phase):
  return json.loads((workdir / phase / 'result.json').read_text())


def test_teacher_heads_and_students_are_accurate_on_digits(learnt):
  teacher = result(learnt, 'teacher')['test_last']['top1']
  members = result(learnt, 'heads')['members']
  students = {name: result(learnt, f'student/{name}')['test_last']
              for name in ('ce', 'kd', 'dih')}
  assert teacher >= 0.95
  assert members['stage1']['test_last']['top1'] >= 0.9
  assert members['stage2']['test_last']['top1'] >= 0.9
  for name in ('kd', 'dih'):
    assert students[name]['top1'] >= students['ce']['top1'] - 7 / 359
    assert students[name]['agreement'] > 0.9


@pytest.mark.parametrize('phase', PHASES)
def test_the_loss_falls_to_less_than_half(learnt, phase):
  losses = [line['train/loss'] for line in metric_log.read_metrics(
      learnt / phase / 'metrics.jsonl') if 'train/loss' in line]
  assert min(losses[-3:]) < losses[0] / 2


def made_problem(workdir, name):
  """The training problem of a phase, or of a method, on 40 made images."""
  config = read_config(workdir, 'unused', f'--config.student.methods={name}'
                       if name not in ('teacher', 'heads') else '--config.student.methods=ce')
  spec = DataSpec('digits', (8, 8, 1), 10)
  built = networks.build(config, spec)
  run = Experiment(config, built, Workdir(workdir), made_splits(spec, 40))
  teacher = networks.initialise(built.teacher, jax.random.key(0), spec.image_shape)
  heads = networks.initialise_heads(built, jax.random.key(1))
  if name == 'teacher':
    return teacher_problem(config, built, run.data, teacher)
  if name == 'heads':
    return heads_problem(config, built, run.data, heads, teacher)
  variables = state_lib.join(
      student=networks.initialise(built.student, jax.random.key(2), spec.image_shape),
      method=networks.initialise_method(built, name, jax.random.key(3), 40))
  return student_problem(config, built, run.data, variables, name,
                         teacher_of(config, built, {'teacher': teacher}),
                         preparing=built.methods[name].prepares)


def leaves(tree):
  return {jax.tree_util.keystr(path, simple=True, separator='/'): np.array(leaf)
          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


# `ab` first trains all of the student but its classifier.
@pytest.mark.parametrize('name, kept', [
    ('teacher', set()), ('heads', set()), slow('cc', set()),
    ('ab', {'student/Dense_0/kernel', 'student/Dense_0/bias'})])
def test_what_learns_changes_and_what_is_frozen_keeps_its_bits(tmp_path, name, kept):
  problem = made_problem(tmp_path, name)
  frozen = devices.replicate(problem.task.frozen)
  begun = problem.state(problem.variables, 0)
  step, feeds = problem.compiled(), problem.feeds(0, [1] * 4)
  before, taught = leaves(begun.params), leaves(problem.task.frozen)
  after, losses = devices.replicate(begun), []
  for feed in feeds:
    after, metrics = step(after, frozen, problem.resident, feed)
    losses.append(float(metrics['loss'][0]))
  learnt = leaves(after.params)
  assert {path for path in before if learnt[path].tobytes() == before[path].tobytes()} == kept
  assert {path: leaf.tobytes() for path, leaf in leaves(frozen).items()} == {
      path: leaf.tobytes() for path, leaf in taught.items()}
  assert losses[-1] < losses[0]
