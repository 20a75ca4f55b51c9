"""FitNets and AB: the layers in the middle, against their formulas in float64."""
import dataclasses

import jax
import numpy as np
import pytest

from kdih.distillation.lesson import Lesson
from tests.helpers import float64, lessons
from tests.helpers.slow import slow

FITNETS = dict(kind='fitnets', phases='two', hint=1, alpha=0.3, temperature=4.0,
               cross_entropy=0.5, weight=100.0)
AB = dict(kind='ab', margin=0.7)


def of_sizes(student, teacher) -> Lesson:
  """Of a first tap of these shapes, and a second one that fits."""
  return lessons.lesson((student, (2, 2, 5)), (teacher, (2, 2, 5)))


def regressor(x, params, shape):
  """A convolution to `shape`, by its rule, and batch norm."""
  kernel = params['conv']['kernel']
  if x.shape[1] == 2 * shape[1]:
    x = float64.conv(x, kernel, 2, 1)
  elif 2 * x.shape[1] == shape[1]:
    batch, height, width, channels = x.shape
    spread = np.zeros((batch, 2 * height - 1, 2 * width - 1, channels))
    spread[:, ::2, ::2] = x
    x = float64.conv(spread, kernel, 1, 2)
  else:
    x = float64.conv(x, kernel)
  return float64.batch_norm(x, params['norm'])


def hint_of(lesson: Lesson):
  target = float64.of(lesson.teacher)['features']['stage1']

  def hint(params, student):
    mapped = regressor(student['features']['stage1'], params['regressor'], target.shape)
    return ((np.maximum(mapped, 0) - target)**2).mean()

  return hint


@pytest.mark.parametrize('student, teacher, kernel', [
    ((4, 4, 3), (4, 4, 6), (1, 1)), ((4, 4, 3), (2, 2, 6), (3, 3)), ((2, 2, 3), (4, 4, 6), (4, 4)),
    ((5, 4, 3), (3, 3, 6), (3, 2)), *(slow(*sizes) for sizes in (
        ((4, 4, 3), (4, 4, 3), (1, 1)), ((5, 5, 3), (3, 3, 6), (3, 3)),
        ((2, 4, 2), (4, 8, 3), (4, 4)), ((2, 2, 3), (1, 1, 6), (3, 3))))])
def test_the_hint_is_its_formula_for_every_regressor(student, teacher, kernel):
  lesson = of_sizes(student, teacher)
  method, variables = float64.started(FITNETS, lesson)
  conv = variables['params']['regressor']['conv']
  assert {name: leaf.shape for name, leaf in conv.items()} == {
      'kernel': (*kernel, student[-1], teacher[-1])}
  float64.check(method, variables, lesson, hint_of(lesson), 'prepare')


def test_the_hint_is_at_the_tap_of_its_number():
  lesson = lessons.lesson()
  _, variables = float64.started({**FITNETS, 'hint': 2}, lesson)
  assert variables['params']['regressor']['conv']['kernel'].shape == (1, 1, 5, 8)


def test_after_its_hint_the_student_learns_by_kd():
  lesson = lessons.lesson()
  method, variables = float64.started(FITNETS, lesson)
  taught = float64.log_softmax(float64.of(lesson.teacher)['logits'] / 4)

  def kd(params, student):
    kl = (np.exp(taught) * (taught - float64.log_softmax(student['logits'] / 4))).sum(-1)
    return (0.7 * float64.cross_entropy(student['logits']) + 0.3 * 16 * kl).mean()

  float64.check(method, variables, lesson, kd)


def test_in_one_phase_the_hint_is_added_to_the_labels():
  lesson = lessons.lesson()
  method, variables = float64.started({**FITNETS, 'phases': 'one'}, lesson)
  hint = hint_of(lesson)
  assert not method.prepares
  float64.check(method, variables, lesson, lambda params, student: (
      0.5 * float64.cross_entropy(student['logits']).mean() + 100 * hint(params, student)))


@pytest.mark.parametrize('changes, phase, modules', [
    ({}, 'prepare', {'student/Conv_0', 'student/BatchNorm_0', 'method/regressor'}),
    ({}, '__call__', {'student/Conv_0', 'student/BatchNorm_0', 'student/Conv_1',
                      'student/BatchNorm_1', 'student/Dense_0'}),
    ({'hint': 2}, 'prepare', {'student/Conv_0', 'student/BatchNorm_0', 'student/Conv_1',
                              'student/BatchNorm_1', 'method/regressor'}),
    ({'phases': 'one'}, '__call__', {
        'student/Conv_0', 'student/BatchNorm_0', 'student/Conv_1', 'student/BatchNorm_1',
        'student/Dense_0', 'method/regressor'})])
def test_a_hint_moves_what_lies_before_it(changes, phase, modules):
  assert float64.reached({**FITNETS, **changes}, phase) == modules


@pytest.mark.parametrize('student, teacher, message', [
    ((3, 3, 3), (5, 5, 6), 'no regressor leads from a map of 3x3 to one of 5x5'),
    ((4, 2, 3), (4, 4, 6), 'no regressor leads from a map of 4x2 to one of 4x4')])
def test_a_map_that_is_too_small_is_refused(student, teacher, message):
  lesson = of_sizes(student, teacher)
  with pytest.raises(ValueError, match=message):
    float64.started(FITNETS, lesson)
  with pytest.raises(ValueError, match=message):
    float64.started(AB, lesson)


def test_a_hint_beyond_the_last_tap_is_refused():
  with pytest.raises(ValueError, match='hint is 3, and there are 2 taps'):
    float64.started({**FITNETS, 'hint': 3}, lessons.lesson())


def boundaries_of(lesson: Lesson):
  targets = float64.of(lesson.teacher)['preactivations']

  def loss(params, student):
    total = 0.0
    for (tap, t), weight in zip(targets.items(), (0.5, 1.0), strict=True):
      s = student['preactivations'][tap]
      if s.shape != t.shape:
        s = regressor(s, params[f'connector{tap[-1]}'], t.shape)
      off = (s + 0.7)**2 * ((s > -0.7) & (t <= 0))
      on = (s - 0.7)**2 * ((s <= 0.7) & (t > 0))
      total += weight * (off + on).sum() / lessons.BATCH / 1000 * 3
    return total

  return loss


@pytest.mark.parametrize('shapes, connectors', [
    (((4, 4, 6), (2, 2, 8)), {'connector1', 'connector2'}),
    (((4, 4, 3), (2, 2, 8)), {'connector2'}),
    (((2, 2, 3), (2, 2, 5)), {'connector1'}),
    (((4, 4, 3), (2, 2, 5)), set())])
def test_ab_is_its_formula(shapes, connectors):
  lesson = lessons.lesson(teacher_shapes=shapes)
  method, variables = float64.started(AB, lesson)
  assert variables.get('params', {}).keys() == connectors
  float64.check(method, variables, lesson, boundaries_of(lesson), 'prepare')


def test_after_ab_the_student_learns_from_the_labels():
  lesson = lessons.lesson()
  method, variables = float64.started(AB, lesson)
  float64.check(method, variables, lesson, lambda params, student: (
      float64.cross_entropy(student['logits']).mean()))


def test_ab_moves_all_but_the_classifier_and_then_the_student_alone():
  before = {'student/Conv_0', 'student/BatchNorm_0', 'student/Conv_1', 'student/BatchNorm_1'}
  assert float64.reached(AB, 'prepare') == before | {'method/connector1', 'method/connector2'}
  assert float64.reached(AB, '__call__') == before | {'student/Dense_0'}


@pytest.mark.parametrize('role', ['student', 'teacher'])
def test_ab_needs_what_lies_before_the_relu(role):
  lesson = lessons.lesson()
  silent = dataclasses.replace(getattr(lesson, role), preactivations={})
  with pytest.raises(ValueError, match=f"the {role} does not sow the preactivation of 's"):
    lessons.make(AB).init(jax.random.key(0), dataclasses.replace(lesson, **{role: silent}),
                          method='prepare')


@pytest.mark.parametrize('options, phase', [(FITNETS, 'prepare'), (AB, 'prepare')])
def test_batch_norms_see_the_images_of_all_devices(options, phase):
  lesson = lessons.lesson()
  method, variables = float64.started(options, lesson)
  together, _ = float64.applied(method, variables, lesson, phase)
  np.testing.assert_allclose(
      float64.apart(options, variables, lesson, phase), together, rtol=1e-4)
