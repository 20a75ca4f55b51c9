"""TOFD and MHKD: classifiers on features of both sides, against their formulas in float64."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdih.distillation.lesson import Lesson
from kdih.distillation.method import Context
from kdih.runtime import devices
from tests.helpers import float64, lessons

MHKD = dict(kind='mhkd', alpha=0.3, temperature=4.0, beta=0.5, width=3)
TOFD = dict(kind='tofd', temperature=3.0, alpha=0.05, beta=0.03)
# Three taps, the student's last but one already of one pixel.
STUDENT_SHAPES = ((5, 5, 2), (1, 1, 3), (1, 1, 4))
TEACHER_SHAPES = ((4, 4, 3), (2, 2, 4), (1, 1, 6))
LESSON = lessons.lesson(STUDENT_SHAPES, TEACHER_SHAPES)
TEACHER = float64.of(LESSON.teacher)


@pytest.fixture(scope='module')
def mhkd():
  return float64.started(MHKD, LESSON)


@pytest.fixture(scope='module')
def tofd():
  return float64.started(TOFD, LESSON)


def in_order(output):
  return [output['features'][tap] for tap in ('stage1', 'stage2', 'stage3')]


def soft_cross_entropy(z, t, temperature):
  p = np.exp(float64.log_softmax(t / temperature))
  return -(p * float64.log_softmax(z / temperature)).sum(-1)


def kd(z, t):
  kl = soft_cross_entropy(z, t, 4) - soft_cross_entropy(t, t, 4)
  return 0.7 * float64.cross_entropy(z) + 0.3 * 16 * kl


def linear(x, params):
  return x @ params['kernel'] + params['bias']


def depthwise(x, kernel, stride):
  return np.concatenate([float64.conv(x[..., [c]], kernel[..., [c]], stride, 1)
                         for c in range(x.shape[-1])], -1)


def mhkd_head(x, params):
  for i in (0, 1):
    x = float64.conv(x, params[f'Conv_{i}']['kernel'], padding=1)
    x = np.maximum(float64.batch_norm(x, params[f'BatchNorm_{i}']), 0)
  return linear(np.maximum(linear(x.mean((1, 2)), params['Dense_0']), 0), params['Dense_1'])


def mhkd_loss(params, student, constants):
  """Of `params`, but for the teacher's heads as they teach, which are of `constants`."""
  loss = kd(student['logits'], TEACHER['logits'])
  for i, (feature, taught) in enumerate(zip(in_order(student), in_order(TEACHER), strict=True), 1):
    loss = loss + float64.cross_entropy(mhkd_head(taught, params[f'teacher{i}']))
    loss = loss + 0.5 * kd(mhkd_head(feature, params[f'student{i}']),
                           mhkd_head(taught, constants[f'teacher{i}']))
  return loss.mean()


def tofd_branches(features, params, stats=None):
  """[(g, z)] of all taps but the last."""
  branches = []
  for i, x in enumerate(features[:-1], 1):
    for j in range(1, len(features) - i + 1):
      block = f'branch{i}_block{j}'
      for half, stride in ((0, 2), (1, 1)):
        norm = f'BatchNorm_{half}'
        x = depthwise(x, params[block][f'Conv_{2 * half}']['kernel'], stride)
        x = float64.conv(x, params[block][f'Conv_{2 * half + 1}']['kernel'])
        x = np.maximum(
            float64.batch_norm(x, params[block][norm], stats and stats[block][norm]), 0)
    branches.append((x.mean((1, 2)), linear(x.mean((1, 2)), params[f'branch{i}_classifier'])))
  return branches


def tofd_loss(params, student, variables):
  """Of `params`, but for the teacher's branches, which are of `variables`."""
  taught_by = tofd_branches(in_order(TEACHER), variables['params']['teacher'],
                            variables['batch_stats']['teacher'])
  pairs = zip([*tofd_branches(in_order(student), params['student']),
               (student['embedding'], student['logits'])],
              [*taught_by, (TEACHER['embedding'], TEACHER['logits'])], strict=True)
  loss = 0.0
  for i, ((g, z), (g_taught, z_taught)) in enumerate(pairs, 1):
    w = params[f'link{i}']['kernel']
    loss += (float64.cross_entropy(z) + soft_cross_entropy(z, z_taught, 3)).mean()
    loss += 0.05 * np.sqrt(((g @ w - g_taught)**2).sum())
    loss += 0.03 * (np.sqrt(((w @ w.T - np.eye(len(w)))**2).sum())
                    + np.sqrt(((w.T @ w - np.eye(w.shape[1]))**2).sum()))
  return loss


def test_mhkd_is_its_formula(mhkd):
  method, variables = mhkd
  constants = float64.of(variables['params'])
  float64.check(method, variables, LESSON,
                lambda params, student: mhkd_loss(params, student, constants))


def test_mhkd_has_a_head_on_every_tap_of_both_and_trains_them_all():
  assert {name for name in float64.reached(MHKD, '__call__') if 'method' in name} == {
      'method/student1', 'method/student2', 'method/teacher1', 'method/teacher2'}


@pytest.mark.slow
def test_tofd_is_its_formula(tofd):
  method, variables = tofd
  constants = float64.of(variables)
  float64.check(method, variables, LESSON,
                lambda params, student: tofd_loss(params, student, constants))


@pytest.mark.slow
def test_tofd_prepares_the_teachers_branches_by_the_labels(tofd):
  def reference(params, student):
    del student
    branches = tofd_branches(in_order(TEACHER), params['teacher'])
    return sum(float64.cross_entropy(z) for _, z in branches).mean()

  float64.check(*tofd, LESSON, reference, 'prepare')


def test_tofd_trains_what_the_phase_is_for():
  assert float64.reached(TOFD, 'prepare') == {'method/teacher'}
  assert {name for name in float64.reached(TOFD, '__call__') if 'method' in name} == {
      'method/student', 'method/link1', 'method/link2'}


@pytest.mark.parametrize('phase, moved, still', [
    ('prepare', 'teacher', 'student'), ('__call__', 'student', 'teacher')])
def test_tofd_counts_batches_of_what_the_phase_is_for(tofd, phase, moved, still):
  method, variables = tofd
  _, changed = float64.applied(method, variables, LESSON, phase)
  before, after = variables['batch_stats'], changed['batch_stats']
  jax.tree.map(np.testing.assert_array_equal, after[still], before[still])
  same = jax.tree.leaves(jax.tree.map(np.array_equal, after[moved], before[moved]))
  assert not any(same)


def test_tofds_branches_end_as_wide_as_the_deepest_tap(tofd):
  _, variables = tofd
  params = variables['params']
  assert params['student']['branch1_block2']['Conv_3']['kernel'].shape == (1, 1, 3, 4)
  assert params['teacher']['branch1_classifier']['kernel'].shape == (6, lessons.CLASSES)
  assert params['link1']['kernel'].shape == (4, 6)
  assert params['link3']['kernel'].shape == (5, 8)
  assert 'branch3_classifier' not in params['student']


@pytest.mark.slow
def test_tofd_without_any_difference_has_a_gradient():
  """Where a norm is 0, as it is of features that are all 0."""
  blank = jax.tree.map(jnp.zeros_like, LESSON.student)
  silent = dataclasses.replace(LESSON, student=blank, teacher=lessons.signal(blank))
  method, variables = float64.started(TOFD, silent)

  def loss(params, embedding):
    lesson = dataclasses.replace(
        silent, student=dataclasses.replace(blank, embedding=embedding))
    return lessons.mean(
        method.apply({**variables, 'params': params}, lesson, mutable=['batch_stats'])[0])

  gradients = jax.jit(jax.grad(loss, (0, 1)))(variables['params'], blank.embedding)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.slow
@pytest.mark.parametrize('options', [MHKD, TOFD], ids=['mhkd', 'tofd'])
def test_four_devices_and_one_agree(options, request):
  """With batch norms that see the whole batch."""
  several = lessons.make(options, Context(axis_name=devices.AXIS))
  alone, variables = request.getfixturevalue(options['kind'])

  def loss(params, method, gather, student, teacher, labels):
    lesson = Lesson(images=LESSON.images, labels=labels, student=student, teacher=teacher,
                    gather=gather)
    return lessons.mean(
        method.apply({**variables, 'params': params}, lesson, mutable=['batch_stats'])[0])

  def on_one(*parts):
    return jax.lax.pmean(jax.value_and_grad(loss)(
        variables['params'], several, devices.gather, *parts), devices.AXIS)

  whole = (LESSON.student, LESSON.teacher, LESSON.labels)
  parts = jax.tree.map(lambda x: x.reshape(4, 1, *x.shape[1:]), whole)
  found = jax.pmap(on_one, axis_name=devices.AXIS, out_axes=None)(*parts)
  expectation = jax.jit(lambda *whole: jax.value_and_grad(loss)(
      variables['params'], alone, lambda x: x, *whole))(*whole)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5),
               found, expectation)


@pytest.mark.parametrize('options', [MHKD, TOFD], ids=['mhkd', 'tofd'])
def test_models_of_unequal_taps_are_refused(options):
  with pytest.raises(ValueError, match='the student has 2 taps .* and the teacher 3'):
    lessons.make(options).init(jax.random.key(0), lessons.lesson(
        teacher_shapes=TEACHER_SHAPES))


def test_tofd_needs_a_tap_before_the_deepest():
  with pytest.raises(ValueError, match='the models have one tap each'):
    lessons.make(TOFD).init(jax.random.key(0), lessons.lesson(((4, 4, 3),), ((4, 4, 6),)))
