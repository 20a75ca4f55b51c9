"""The same student on any number of devices, from a cache, and in one program with others.

Training amplifies rounding: in float32 two runs whose sums are in another order drift apart. What
is computed is the same, which float64 shows after several steps, and float32 in each step.
"""
import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdih.cohort import cache
from kdih.data.made import made_splits
from kdih.data.spec import DataSpec
from kdih.phases import cache_plan, networks
from kdih.phases.experiment import Experiment
from kdih.phases.student import student_problem, teacher_of
from kdih.runtime.workdir import Workdir
from kdih.training import state as state_lib
from kdih.training.together import Students
from tests.helpers.runs import read_config

SPEC = DataSpec('digits', (8, 8, 1), 10)
SPLITS = made_splits(SPEC, 64)
STEPS = 6
SEEDS = (5, 6, 7)


@pytest.fixture(autouse=True)
def without_earlier_tables():
  """Builds the cache of each test anew."""
  cache.forget()


@pytest.fixture
def float64(monkeypatch):
  """Computes in float64 what is float32 otherwise."""
  monkeypatch.setattr(jnp, 'float32', jnp.float64)
  jax.config.update('jax_enable_x64', True)
  yield
  jax.config.update('jax_enable_x64', False)


def problem_of(path, *overrides: str):
  """The training problem of a student with batch norm that dih teaches."""
  config = read_config(path, 'unused', '--config.student.methods=dih',
                       *(f'--config.{item}' for item in overrides))
  built = networks.build(config, SPEC)
  built = dataclasses.replace(built, teacher=built.teacher.clone(dtype=jnp.float32),
                              student=built.student.clone(dtype=jnp.float32))
  run = Experiment(config, built, Workdir(path), SPLITS)
  frozen = {'teacher': networks.initialise(built.teacher, jax.random.key(0), SPEC.image_shape),
            'heads': networks.initialise_heads(built, jax.random.key(1))}
  frozen = jax.tree.map(lambda leaf: 3 * leaf, frozen)  # Outputs far from uniform.
  teacher = teacher_of(config, built, frozen, ('dih',))
  make_table = (functools.partial(cache_plan.table, run, ('dih',), teacher.module, teacher.frozen)
                if config.compute.cache != 'none' else None)
  student = networks.initialise(built.student, jax.random.key(2), SPEC.image_shape)
  return student_problem(config, built, run.data, state_lib.join(student=student, method={}),
                         'dih', teacher, make_table=make_table)


def initial(problem, seed: int = SEEDS[0]):
  """The state of a student that starts from variables of its own seed, in numpy."""
  variables = jax.tree.map(
      lambda leaf: np.asarray(leaf * (1 + 0.1 * seed), _dtype()), problem.variables)
  return jax.device_get(problem.state(variables, seed))


def _dtype():
  return np.float64 if jax.config.jax_enable_x64 else np.float32


def trained(problem, state, students=None):
  """(the states from the first to the last, metrics of every step), in numpy, of `STEPS` steps."""
  step, states, rows = problem.compiled(students), [state], []
  for feed in problem.feeds(0, [1] * STEPS):
    after, metrics = step(states[-1], problem.task.frozen, problem.resident, feed)
    states.append(jax.device_get(after))
    rows.append(jax.device_get(metrics))
  return states, in_turn(rows)


def metrics_from(problem, states):
  """The metrics of every step, each made from a state that is given."""
  step = problem.compiled()
  return in_turn([
      jax.device_get(step(state, problem.task.frozen, problem.resident, feed)[1])
      for state, feed in zip(states, problem.feeds(0, [1] * STEPS), strict=True)])


def in_turn(rows):
  """The metrics of steps, [1] each, as [steps]."""
  return jax.tree.map(lambda *leaves: np.concatenate(leaves), *rows)


def assert_same(one, other, tolerance: float) -> None:
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance),
               one, other)


def assert_taught(states, metrics) -> None:
  """Every kernel has moved far, and the teachers had a part in it."""
  for before, after in zip(*(jax.tree.leaves(states[i].params) for i in (0, -1)), strict=True):
    assert before.ndim == 1 or np.abs(after - before).max() > 1e-2
  assert (metrics['kl'] > 1e-2).all()


@contextlib.contextmanager
def on_devices(number: int):
  """Compiles everything in its body for so many devices."""
  some = jax.devices()[:number]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, 'pmap', functools.partial(jax.pmap, devices=some))
    patch.setattr(jax, 'local_devices', lambda: some)
    patch.setattr(jax, 'device_count', lambda: number)
    patch.setattr(jax, 'local_device_count', lambda: number)
    yield


@pytest.mark.slow
def test_one_device_and_four_train_the_same_student_in_float64(tmp_path, float64):
  by_number = {}
  for number in (1, 4):
    with on_devices(number):
      problem = problem_of(tmp_path)
      by_number[number] = trained(problem, initial(problem))
  states, metrics = by_number[1]
  assert {leaf.dtype for leaf in jax.tree.leaves((states[-1].params, metrics))} == {
      np.dtype(np.float64)}
  assert_taught(states, metrics)
  assert_same(by_number[1], by_number[4], 1e-9)


@pytest.mark.slow
def test_one_device_and_four_have_the_same_loss_in_float32(tmp_path):
  """In every step that both begin with the same student."""
  with on_devices(1):
    problem = problem_of(tmp_path)
    states, one = trained(problem, initial(problem))
  with on_devices(4):
    four = metrics_from(problem_of(tmp_path), states[:-1])
  assert_same(one, four, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('override', [
    'compute.cache_members=False', 'compute.cache_members=True'])
def test_cached_outputs_give_the_loss_of_a_live_teacher(tmp_path, override):
  """In every step, up to the rounding of float16, which the cache holds."""
  live, cached = (problem_of(tmp_path, override, f'compute.cache={name}')
                  for name in ('none', 'all_views'))
  states, expected = trained(live, initial(live))
  found = metrics_from(cached, states[:-1])
  assert_same(found, expected, 5e-4)
  np.testing.assert_allclose(found['ce'], expected['ce'], rtol=1e-6)  # The same images and crops.
  assert (found['kl'] != expected['kl']).any()


def together(problem, way: str):
  """Seeds that train as one program, and alone: (states, metrics) of each."""
  students = Students([problem.train_step] * len(SEEDS), way)
  starts = [initial(problem, seed) for seed in SEEDS]
  joined, metrics = trained(problem, jax.device_get(students.join(starts)), students)
  by_student = zip(*map(students.split, joined), strict=True)
  as_one = [(list(states), of_one) for states, of_one in zip(by_student, metrics, strict=True)]
  return as_one, [trained(problem, state) for state in starts]


@pytest.mark.slow
def test_students_by_vmap_are_those_that_train_alone_in_float64(tmp_path, float64):
  as_one, alone = together(problem_of(tmp_path, 'data.order_seed=3'), 'vmap')
  assert_taught(*alone[0])
  assert_same(as_one, alone, 1e-9)
  assert not np.allclose(alone[0][1]['loss'], alone[1][1]['loss'], rtol=1e-2)


@pytest.mark.slow
def test_unrolled_students_have_the_bits_of_those_that_train_alone(tmp_path):
  """On one device; over several, XLA sums the gradients of all students in another order."""
  with on_devices(1):
    as_one, alone = together(problem_of(tmp_path, 'data.order_seed=3'), 'unrolled')
  for (states, metrics), (own, logged) in zip(as_one, alone, strict=True):
    jax.tree.map(np.testing.assert_array_equal, states, own)
    assert_same(metrics, logged, 1e-6)
