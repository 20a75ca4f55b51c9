"""The frozen teacher, folded: equal outputs with fewer batch norms; and in bfloat16."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdih import errors, main
from kdih.cohort import frozen_teacher
from kdih.data import datasets, source
from kdih.models import registry, taps
from kdih.models.resnet import ResNet
from kdih.phases import networks
from kdih.phases.experiment import Experiment
from kdih.phases.heads import run_heads
from kdih.phases.student import run_student
from kdih.runtime.workdir import Workdir
from kdih.training.task import Moment, blank_batch
from tests.helpers.model_checks import FAMILIES, random_images, random_variables, smaller
from tests.helpers.runs import exported, read_config
from tests.helpers.slow import slow
from tests.helpers.tiny_nets import NoTaps, TinyNet

# The batch norms of each family's small model, and those before a convolution, which remain.
NORMS = {'resnet8': (3, 0), 'resnet50': (12, 0), 'resnet18_imagenet': (3, 0), 'wrn_16_1': (7, 4),
         'vgg8': (2, 0), 'vgg11': (2, 0), 'mobilenetv2': (53, 0), 'shufflenetv1': (10, 0),
         'shufflenetv2': (15, 0), 'vit_tiny': (0, 0)}
SIZE = 8


def variables_of(model, images):
  variables = random_variables(model, images)
  return {name: variables[name] for name in ('params', 'batch_stats') if name in variables}


def outputs(model, images, names, variables):
  output, _ = taps.observe(model, variables, images, names)
  return output.logits, output.features, output.preactivations, output.embedding


def norms_in(call, variables):
  """Batch norms in what is computed; a layer norm has a mean to take, they have not."""
  def count(jaxpr):
    inner = (value.jaxpr if hasattr(value, 'jaxpr') else value for equation in jaxpr.eqns
             for value in equation.params.values())
    return (sum(equation.primitive.name == 'rsqrt' for equation in jaxpr.eqns)
            + sum(count(jaxpr) for jaxpr in inner if hasattr(jaxpr, 'eqns')))
  return count(jax.make_jaxpr(call)(variables).jaxpr)


def check(model, names, tolerance=1e-4, size=SIZE):
  """Asserts that folding changes nothing; the numbers of batch norms before and after."""
  images = random_images(2, size)
  variables = variables_of(model, images)
  before = jax.tree.map(np.copy, variables)
  folded = frozen_teacher.fold(model, variables, names)
  jax.tree.map(np.testing.assert_array_equal, variables, before)
  call = functools.partial(outputs, model, images, names)
  quick = jax.jit(call, compiler_options={'xla_backend_optimization_level': 0})
  expected, found = quick(variables), quick(folded)
  for right, value in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
    scale = np.abs(right).max()
    np.testing.assert_allclose(value, right, rtol=tolerance, atol=tolerance * scale)
    assert scale > 1e-3
  return norms_in(call, variables), norms_in(call, folded)


@pytest.mark.parametrize('name', FAMILIES)
def test_every_family_has_equal_outputs_with_the_norms_behind_its_convolutions_folded(name):
  model = smaller(name)
  normed = 5 if name == 'vit_tiny' else 0  # Its layer norms.
  before, after = NORMS[name]
  names = tuple(taps.sown(model, (SIZE, SIZE, 3)))
  assert check(model, names) == (before + normed, after + normed)


@pytest.mark.parametrize('taps, remain', [
    (('stem',), 1), (('stem_norm',), 0), (('stage1_block1/conv2', 'stage1_block1/norm2'), 1),
    (('stage1_block1',), 0), ((), 0)])
def test_the_output_of_a_convolution_that_is_a_tap_stays(taps, remain):
  assert check(smaller('resnet8'), taps) == (3, remain)


def test_the_fold_is_scale_over_the_root_of_the_variance():
  model = registry.create('vgg8', 3, layout=(4, 'tap'))
  variables = {
      'params': {'conv1': {'kernel': np.full((3, 3, 3, 4), 2, np.float32),
                           'bias': np.full(4, 6, np.float32)},
                 'norm1': {'scale': np.full(4, 3, np.float32), 'bias': np.full(4, 5, np.float32)},
                 'classifier': {'kernel': np.ones((4, 3), np.float32),
                                'bias': np.ones(3, np.float32)}},
      'batch_stats': {'norm1': {'mean': np.full(4, 7, np.float32),
                                'var': np.full(4, 4 - 1e-5, np.float32)}}}
  folded = frozen_teacher.fold(model, variables, ())
  np.testing.assert_allclose(folded['params']['conv1']['kernel'], np.full((3, 3, 3, 4), 3.0))
  np.testing.assert_allclose(folded['params']['conv1']['bias'], np.full(4, 9.0))
  np.testing.assert_allclose(folded[taps.FOLDED]['norm1']['shift'], np.full(4, 5 - 10.5))
  np.testing.assert_array_equal(folded['params']['classifier']['kernel'], np.ones((4, 3)))


class Derived(ResNet):
  """A user's own model may use its layers otherwise."""


@pytest.mark.parametrize('model', [
    TinyNet(3), slow(Derived(3, stage_sizes=(1,), stage_widths=(2,)))])
def test_a_model_of_a_users_own_stays(model):
  variables = taps.initial(model, jax.random.key(0), random_images(2, SIZE))
  assert frozen_teacher.fold(model, variables, ()) is variables


def prepared(name, **fields):
  """Returns the outputs of the small prepared model, and its kernels' types."""
  model, images = smaller(name), random_images(8, SIZE)
  names = tuple(taps.sown(model, (SIZE, SIZE, 3)))
  model, variables = frozen_teacher.prepare(
      model, variables_of(model, images), names,
      **{'fold_batch_norm': True, 'dtype': '', **fields})
  kernels = {leaf.dtype for path, leaf in jax.tree_util.tree_leaves_with_path(variables['params'])
             if path[-1].key == 'kernel' and path[-2].key != 'classifier'}
  with jax.numpy_dtype_promotion('standard'):
    quick = jax.jit(functools.partial(outputs, model, images, names),
                    compiler_options={'xla_backend_optimization_level': 0})
    return quick(variables), kernels


@pytest.mark.slow
@pytest.mark.parametrize('name', ['resnet8', 'vgg8', 'vit_tiny'])
@pytest.mark.parametrize('fold', [True, False])
def test_in_bfloat16_a_teacher_has_equal_float32_outputs_but_for_rounding(name, fold):
  exact, _ = prepared(name, fold_batch_norm=fold)
  rounded, kernels = prepared(name, fold_batch_norm=fold, dtype='bfloat16')
  assert kernels == {jnp.dtype('bfloat16' if fold and name != 'vit_tiny' else 'float32')}
  for right, value in zip(jax.tree.leaves(exact), jax.tree.leaves(rounded), strict=True):
    assert value.dtype == jnp.float32
    error = np.abs(value - right).max() / np.abs(right).max()
    # 8 bits of a number are kept; a few layers add their errors up.
    assert 2**-13 < error < 2**-5


def test_a_teacher_without_a_dtype_cannot_compute_in_one():
  frozen_teacher.check_dtype(NoTaps(3), '')
  frozen_teacher.check_dtype(smaller('resnet8'), 'bfloat16')
  with pytest.raises(errors.ConfigError, match=r'^config\.compute\.teacher_dtype: NoTaps '):
    frozen_teacher.check_dtype(NoTaps(3), 'bfloat16')


@pytest.fixture(scope='module')
def plainly(tmp_path_factory, digits_dir):
  """A tiny run in which nothing is folded."""
  workdir = tmp_path_factory.mktemp('plainly')
  return workdir, tiny_run(workdir, digits_dir, 'fold_batch_norm=False')


def tiny_run(workdir, digits_dir, setting):
  return main.run(tiny_config(workdir, digits_dir, setting), workdir)


def tiny_config(workdir, digits_dir, setting):
  return read_config(
      workdir, digits_dir, f'--config.compute.{setting}', '--config.student.methods=dih,takd',
      '--config.teacher.name=wrn_16_1', '--config.teacher.kwargs.depth=10')


class Begun(Experiment):
  """Ends where training would begin."""
  task = None

  def train(self, phase, problem):
    self.task = problem.task
    raise StopIteration


@pytest.mark.slow
@pytest.mark.parametrize('phase, folds', [('heads', True), ('dih', True), ('dih', False)])
def test_training_uses_the_folded_teacher_and_evaluation_the_teacher_itself(
    tmp_path, plainly, digits_dir, phase, folds):
  config = tiny_config(tmp_path, digits_dir, f'fold_batch_norm={folds}')
  config.sync_batch_norm = False
  builder = datasets.open_builder(config.data)
  built = networks.build(config, datasets.describe(builder, config.data))
  begun = Begun(config, built, Workdir(tmp_path), source.open_splits(builder, config.data),
                Workdir(plainly[0]))
  with pytest.raises(StopIteration):
    run_heads(begun) if phase == 'heads' else run_student(begun, phase)
  task, images = begun.task, np.zeros((2, 8, 8, 1), np.float32)
  head = networks.initialise_heads(built, jax.random.key(0))
  batch, key = blank_batch(2, (8, 8, 1)), jax.random.key(0)
  student = networks.initialise(built.student, jax.random.key(0), (8, 8, 1))
  params = head['params'] if phase == 'heads' else {'student': student['params'], 'method': {}}
  kept = {} if phase == 'heads' else {'batch_stats': {'student': student['batch_stats']}}

  def loss(frozen):
    signal = task.signals.read(frozen, {}, batch, key)
    return task.loss(params, kept, frozen, batch, signal, Moment(0.0, key, key))[0]

  learning = norms_in(loss, task.frozen)
  own = 0 if phase == 'heads' else 2  # Of the student, that learns.
  before, after = NORMS['wrn_16_1']
  assert learning == own + (after if folds else before)
  if phase == 'heads':
    assert norms_in(lambda f: task.predict(head, f, images), task.frozen) == before


@pytest.mark.slow
@pytest.mark.parametrize('setting, closest, farthest', [
    ('fold_batch_norm=True', 0, 1e-4), ('teacher_dtype=bfloat16', 1e-6, 0.05)])
def test_heads_and_students_learn_from_the_prepared_teacher_and_the_teacher_itself_stays(
    tmp_path, digits_dir, plainly, setting, closest, farthest):
  before, expected = plainly
  results = tiny_run(tmp_path, digits_dir, setting)
  assert results['teacher']['fingerprint'] == expected['teacher']['fingerprint']
  for measured in ('val', 'test_last'):
    assert results['teacher'][measured] == expected['teacher'][measured]
    assert (results['heads']['members']['final'][measured]
            == expected['heads']['members']['final'][measured])
  for phase in ('heads', 'student/dih', 'student/takd/assistant1', 'student/takd'):
    right, found = exported(before, phase), exported(tmp_path, phase)
    assert right.keys() == found.keys()
    apart = max(np.abs(found[name] - right[name]).max() for name in right)
    assert closest < apart < farthest, phase
