"""A training problem: its step with live and with cached teachers, in parts, and of several."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdih.cohort import cache
from kdih.cohort.cache import build
from kdih.data.made import made_splits
from kdih.data.spec import DataSpec
from kdih.phases import cache_plan, networks
from kdih.phases.experiment import Experiment
from kdih.phases.student import student_problem, teacher_of
from kdih.runtime import devices
from kdih.runtime.workdir import Workdir
from kdih.training import state as state_lib
from kdih.training.together import Students
from tests.helpers.runs import read_config
from tests.helpers.slow import slow

SPEC = DataSpec('digits', (8, 8, 1), 10)
SPLITS = made_splits(SPEC, 40)
WEIGHTS = {'accuracy': [0.5, 1.0, 1.5], 'learnt': [0.0, 0.3, 2.7]}
# Of one temperature each, of one of every member, of other alphas and weights.
VARIANTS = ('dih', 'dih_std', 'dih_learnt', 'dih_teacher', 'dih_own', 'dih_apart')


def experiment(path, *overrides, methods=('dih',)) -> Experiment:
  """One of made images and a student without batch norm."""
  config = read_config(path, 'unused', *(f'--config.{item}' for item in overrides))
  dih = config.methods.dih.to_dict()
  with config.unlocked():
    config.student.name = 'tests.helpers.tiny_nets:NoTaps'
    config.student.kwargs = {}
    config.methods.dih_own = {**dih, 'alpha': (0.9, 0.0, 0.3), 'gain': 2.0}
    config.methods.dih_apart = {**dih, 'temperature': (2.0, 5.0, 1.0)}
    config.student.methods = methods
  return Experiment(config, networks.build(config, SPEC), Workdir(path), SPLITS)


@functools.cache
def frozen_variables():
  """Of a teacher and heads that are not all zeros where they start so."""
  built = experiment('unused').networks
  made = {'teacher': networks.initialise(built.teacher, jax.random.key(0), (8, 8, 1)),
          'heads': networks.initialise_heads(built, jax.random.key(1))}
  return jax.tree.map(lambda leaf: 3 * leaf, made) | {
      'weights': {rule: jnp.array(numbers) for rule, numbers in WEIGHTS.items()}}


def problem_of(run: Experiment, name='dih'):
  """The problem of a student, taught from a cache where the config has one."""
  teacher = teacher_of(run.config, run.networks, dict(frozen_variables()),
                       tuple(run.networks.methods))
  first = (name, *(other for other in teacher.cached_with if other != name))
  make_table = None
  if run.config.compute.cache != 'none':
    make_table = functools.partial(
        cache_plan.table, run, first, teacher.module, teacher.frozen)
  variables = state_lib.join(
      student=networks.initialise(run.networks.student, jax.random.key(2), (8, 8, 1)), method={})
  return student_problem(run.config, run.networks, run.data, variables, name, teacher,
                         make_table=make_table)


def updated(problem, students=None, states=None):
  """(state, metrics), in numpy, after two updates."""
  states = problem.state(problem.variables, 5) if states is None else states
  after = problem.compiled(students)(
      devices.replicate(states), devices.replicate(problem.task.frozen), problem.resident,
      next(problem.feeds(0, [2])))
  return jax.device_get(after)


def assert_close(one, other, tolerance):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance),
               one, other)


@pytest.fixture(autouse=True)
def nothing_kept():
  """Each test makes its own tables."""
  cache.forget()


@pytest.mark.slow
@pytest.mark.parametrize('overrides', [
    (), ('compute.cache=all_views',), ('compute.cache=all_views', 'compute.cache_place=host'),
    ('compute.cache=all_views', 'compute.cache_members=True')])
def test_parts_of_a_batch_make_the_update_of_the_whole(tmp_path, overrides):
  """The student has no batch norm. Each part has the teacher signal of its images."""
  whole, parts = (updated(problem_of(experiment(
      tmp_path, f'compute.accumulate={number}', *overrides))) for number in (1, 4))
  assert list(parts[1]) == list(whole[1]) and set(parts[1]) == {'loss', 'ce', 'kl', 'top1'}
  assert_close(parts, whole, 1e-6)
  np.testing.assert_allclose(whole[1]['loss'], whole[1]['ce'] + whole[1]['kl'], rtol=1e-6)
  assert (whole[1]['kl'] > 1e-2).all()  # Else nothing would have been taught.


@pytest.mark.parametrize('name', [
    VARIANTS[0], *(slow(name) for name in VARIANTS[1:])])
def test_cached_members_teach_what_the_live_cohort_teaches(tmp_path, name):
  live, cached = (updated(problem_of(experiment(tmp_path, *overrides, methods=(name,)), name))
                  for overrides in ((), ('compute.cache=all_views', 'compute.cache_members=True')))
  assert_close(cached, live, 1e-3)  # The rounding of float16.
  before = problem_of(experiment(tmp_path, methods=(name,)), name).variables['params']
  moved = jax.tree.map(lambda a, b: abs(a - b).max(), before, live[0].params)
  assert min(jax.tree.leaves(moved)) > 1e-2  # Far more than the rounding.


@pytest.mark.slow
def test_cached_members_are_those_of_the_views_that_a_step_shows(tmp_path, monkeypatch):
  monkeypatch.setattr(build, 'DTYPE', np.dtype(np.float32))
  live, cached = (updated(problem_of(experiment(tmp_path, *overrides))) for overrides in (
      (), ('compute.cache=all_views', 'compute.cache_members=True')))
  assert_close(cached, live, 1e-6)


@pytest.fixture
def made(monkeypatch):
  """The widths of the tables that are built, call by call."""
  calls, make = [], build.make

  def recorded(request, forget):
    calls.append([table.shape[-1] for table in request.tables])
    return make(request, forget)

  monkeypatch.setattr(build, 'make', recorded)
  return calls


def test_one_table_of_members_serves_every_variant(tmp_path, made):
  run = experiment(tmp_path, 'compute.cache=all_views', 'compute.cache_members=True',
                   methods=VARIANTS)
  tables = [problem_of(run, name).task.signals for name in VARIANTS]
  assert made == [[3 * 10]]  # Three members, ten classes; made once for all.
  assert all(table is tables[0] for table in tables)
  assert tables[0].blank((), 2, (8, 8, 1)).members.shape == (2, 3, 10)
  assert {run.networks.methods[name].summary.name for name in VARIANTS} == {
      'the logits of all members'}


def test_without_it_variants_have_tables_of_soft_labels_of_their_own(tmp_path, made):
  run = experiment(tmp_path, 'compute.cache=all_views', methods=VARIANTS)
  tables = [problem_of(run, name).task.signals for name in VARIANTS]
  # A mean and its spread; where members differ in temperature, their logits.
  assert made == [[11, 11, 11, 11, 11, 30]]
  assert len({id(table) for table in tables}) == len(VARIANTS)
  assert tables[0].blank((), 2, (8, 8, 1)).soft_label.mean.shape == (2, 10)


def test_a_soft_label_serves_alphas_in_proportion(tmp_path, made):
  """It is a mean, of which only the proportions of the shares count."""
  run = experiment(tmp_path, 'compute.cache=all_views', methods=('dih', 'dih_mean', 'dih_once'))
  tables = [problem_of(run, name).task.signals for name in ('dih', 'dih_mean', 'dih_once')]
  assert made == [[11]] and all(table is tables[0] for table in tables)


@pytest.mark.slow
@pytest.mark.parametrize('way', ['unrolled', 'vmap'])
def test_students_together_learn_and_log_what_each_does_alone(tmp_path, way):
  problem = problem_of(experiment(tmp_path, 'compute.accumulate=2', 'data.order_seed=3'))
  students = Students([problem.train_step] * 2, way)
  each = [jax.device_get(problem.state(  # In numpy, for what a step is given it deletes.
      jax.tree.map(lambda leaf, f=factor: f * leaf, problem.variables), seed))
          for seed, factor in ((5, 1.0), (6, 0.5))]
  states, metrics = updated(problem, students, students.join(each))
  for one, logged, initial in zip(students.split(states), metrics, each, strict=True):
    alone, expected = updated(problem, states=initial)
    assert set(logged) == set(expected) == {'loss', 'ce', 'kl', 'top1'}
    assert_close((one, logged), (alone, expected), 1e-5)
  assert not np.allclose(metrics[0]['kl'], metrics[1]['kl'], rtol=1e-2)
