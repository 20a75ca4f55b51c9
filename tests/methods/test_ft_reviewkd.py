"""FT and ReviewKD: factors and fused features, against their formulas in float64."""
import dataclasses

import jax
import numpy as np
import pytest

from kdih.distillation.lesson import Lesson
from tests.helpers import float64, lessons
from tests.helpers.slow import slow

FT = dict(kind='ft', rate=0.5, cross_entropy=0.5, weight=200.0)
REVIEW = dict(kind='reviewkd', width=4, warmup_epochs=20.0, cross_entropy=0.5, weight=3.0)
STUDENT = {f'student/{name}' for name in (
    'Conv_0', 'BatchNorm_0', 'Conv_1', 'BatchNorm_1', 'Dense_0')}


def block(x, params, stats=None):
  for i in range(3):
    x = float64.conv(x, params[f'Conv_{i}']['kernel'], padding=1)
    norm = f'BatchNorm_{i}'
    x = float64.batch_norm(x, params[norm], stats and stats[norm])
    x = np.where(x > 0, x, 0.1 * x)
  return x


def normalised(factor, side):
  """Pooled to `side`; the mean of the channels' squares, of length 1."""
  squares = (float64.pool(factor, side)**2).mean(-1).reshape(lessons.BATCH, -1)
  return squares / np.sqrt((squares**2).sum(-1, keepdims=True))


def last(output):
  return output['features']['stage2']


@pytest.mark.slow
def test_the_paraphraser_learns_to_rebuild_the_teachers_last_feature():
  lesson = lessons.lesson()
  method, variables = float64.started(FT, lesson)
  teacher = last(float64.of(lesson.teacher))
  float64.check(method, variables, lesson, lambda params, student: (
      (block(block(teacher, params['encoder']), params['decoder']) - teacher)**2).mean(),
      'prepare')


@pytest.mark.slow
@pytest.mark.parametrize('student, teacher', [(2, 2), (4, 2), (2, 3)])
def test_the_translator_learns_the_factors_of_the_frozen_paraphraser(student, teacher):
  lesson = lessons.lesson(((4, 4, 3), (student, student, 5)), ((4, 4, 6), (teacher, teacher, 8)))
  method, variables = float64.started(FT, lesson)
  constant = float64.of(variables)
  taught = normalised(
      block(last(float64.of(lesson.teacher)), constant['params']['encoder'],
            constant['batch_stats']['encoder']), min(student, teacher))

  def loss(params, output):
    factor = block(last(output), params['translator'])
    term = np.abs(normalised(factor, min(student, teacher)) - taught).mean()
    return 0.5 * float64.cross_entropy(output['logits']).mean() + 200 * term

  float64.check(method, variables, lesson, loss)


def test_ft_moves_the_paraphraser_and_then_the_others():
  assert float64.reached(FT, 'prepare') == {'method/encoder', 'method/decoder'}
  assert float64.reached(FT, '__call__') == STUDENT | {'method/translator'}


@pytest.mark.parametrize('phase, moved', [
    ('prepare', {'encoder', 'decoder'}), ('__call__', {'translator'})])
def test_the_paraphrasers_batch_norms_rest_while_the_translator_learns(phase, moved):
  lesson = lessons.lesson()
  method, variables = float64.started(FT, lesson)
  _, changed = float64.applied(method, variables, lesson, phase)
  before, after = variables['batch_stats'], changed['batch_stats']
  assert {name for name in before if not all(
      np.array_equal(*both) for both in zip(*map(jax.tree.leaves, (before[name], after[name])),
                                            strict=True))} == moved


@pytest.mark.slow
@pytest.mark.parametrize('rate, width', [(0.5, 4), (0.3, 2), (2.0, 16), (0.01, 1)])
def test_the_rate_sets_the_channels_of_a_factor(rate, width):
  _, variables = float64.started({**FT, 'rate': rate}, lessons.lesson())
  shapes = jax.tree.map(lambda leaf: leaf.shape, variables['params'])
  for name, inputs in (('encoder', 8), ('translator', 5)):
    assert [shapes[name][f'Conv_{i}']['kernel'] for i in range(3)] == [
        (3, 3, inputs, inputs), (3, 3, inputs, width), (3, 3, width, width)]
  assert [shapes['decoder'][f'Conv_{i}']['kernel'] for i in range(3)] == [
      (3, 3, width, width), (3, 3, width, 8), (3, 3, 8, 8)]


def nearest(x, height, width):
  """Pixel i of n is the one at floor(i * size / n)."""
  rows = [int(i * x.shape[1] / height) for i in range(height)]
  columns = [int(i * x.shape[2] / width) for i in range(width)]
  return x[:, rows][:, :, columns]


def narrow_or_widen(x, params, name, padding):
  x = float64.conv(x, params[name]['kernel'], padding=padding)
  return float64.batch_norm(x, params[f'{name}_norm'])


def context_loss(student, teacher):
  total, weights = ((student - teacher)**2).mean(), 1.0
  weight = 1.0
  for side in (4, 2, 1):
    if side < student.shape[1]:
      weight /= 2
      pooled = [float64.pool(x, side) for x in (student, teacher)]
      total, weights = total + weight * ((pooled[0] - pooled[1])**2).mean(), weights + weight
  return total / weights


def levels(student, teacher):
  """The student's features and the teacher's preactivations, each with its embedding."""
  return ([*student['features'].values(), student['embedding'][:, None, None]],
          [*teacher['preactivations'].values(), teacher['embedding'][:, None, None]])


def review_of(lesson: Lesson, warmth: float):
  teacher = float64.of(lesson.teacher)

  def loss(params, student):
    total, fused = 0.0, None
    ours, theirs = levels(student, teacher)
    for i in reversed(range(len(ours))):
      p, x = params[f'fusion{i + 1}'], narrow_or_widen(
          ours[i], params[f'fusion{i + 1}'], 'narrow', 0)
      if fused is not None:
        y = nearest(fused, *x.shape[1:3])
        z = float64.conv(np.concatenate([x, y], -1), p['attention']['kernel'])
        z = 1 / (1 + np.exp(-(z + p['attention']['bias'])))
        x = x * z[..., 0, None] + y * z[..., 1, None]
      fused = nearest(x, *theirs[i].shape[1:3])
      total += context_loss(narrow_or_widen(fused, p, 'widen', 1), theirs[i])
    return 0.5 * float64.cross_entropy(student['logits']).mean() + 3 * warmth * total

  return loss


@pytest.mark.parametrize('student_shapes, teacher_shapes', [
    (((5, 5, 2), (2, 2, 3)), ((3, 3, 3), (3, 3, 5))),
    slow(((6, 6, 2), (3, 3, 3)), ((6, 6, 3), (3, 3, 5)))])
def test_the_review_is_its_formula(student_shapes, teacher_shapes):
  lesson = lessons.lesson(student_shapes, teacher_shapes, epoch=5.0)
  method, variables = float64.started(REVIEW, lesson)
  float64.check(method, variables, lesson, review_of(lesson, 0.25))


@pytest.mark.slow
@pytest.mark.parametrize('epoch, warmup, warmth', [
    (0.0, 20.0, 0.0), (10.0, 20.0, 0.5), (20.0, 20.0, 1.0), (99.0, 20.0, 1.0), (0.0, 0.0, 1.0)])
def test_the_review_warms_up(epoch, warmup, warmth):
  lesson = lessons.lesson(epoch=epoch)
  method, variables = float64.started({**REVIEW, 'warmup_epochs': warmup}, lesson)
  expectation = review_of(lesson, warmth)(
      float64.of(variables['params']), float64.of(lesson.student))
  np.testing.assert_allclose(float64.applied(method, variables, lesson)[0], expectation, rtol=1e-5)


def test_the_deepest_fusion_attends_to_nothing_deeper():
  params = float64.started(REVIEW, lessons.lesson())[1]['params']
  assert params.keys() == {'fusion1', 'fusion2', 'fusion3'}
  assert {name for name, tree in params.items() if 'attention' in tree} == {'fusion1', 'fusion2'}
  assert params['fusion3']['narrow']['kernel'].shape == (1, 1, 5, 4)
  assert params['fusion3']['widen']['kernel'].shape == (3, 3, 4, 8)


def test_the_review_moves_everything():
  assert float64.reached(REVIEW, '__call__') == STUDENT | {
      'method/fusion1', 'method/fusion2', 'method/fusion3'}


@pytest.mark.parametrize('field, nothing, message', [
    ('preactivations', {}, 'does not sow the preactivation of'),
    ('embedding', None, "does not sow 'embedding'")])
def test_the_review_needs_what_the_teacher_may_not_tell(field, nothing, message):
  lesson = lessons.lesson()
  teacher = dataclasses.replace(lesson.teacher, **{field: nothing})
  with pytest.raises(ValueError, match=f'the teacher {message}'):
    float64.started(REVIEW, dataclasses.replace(lesson, teacher=teacher))


def test_the_review_needs_as_many_taps_of_both():
  lesson = lessons.lesson(teacher_shapes=(*lessons.TEACHER_SHAPES, (1, 1, 8)))
  with pytest.raises(ValueError, match='the student has 2 taps .* and the teacher 3'):
    float64.started(REVIEW, lesson)


def test_ft_reads_the_last_taps_alone():
  alone = lessons.lesson()
  lesson = lessons.lesson(teacher_shapes=((1, 1, 7), *lessons.TEACHER_SHAPES))
  last_ones = list(lesson.teacher.features.items())
  teacher = dataclasses.replace(alone.teacher, features=dict(last_ones))
  found, expectation = (
      float64.applied(*float64.started(FT, other), other)[0] for other in (
          dataclasses.replace(alone, teacher=teacher),
          dataclasses.replace(alone, teacher=dataclasses.replace(
              teacher, features=dict(last_ones[1:])))))
  assert found == expectation


def test_ft_needs_maps():
  lesson = lessons.lesson()
  flat = dataclasses.replace(lesson.student, features={'stage2': lesson.student.embedding})
  with pytest.raises(ValueError, match=r'a tap has the shape \(5,\); maps'):
    float64.started(FT, dataclasses.replace(lesson, student=flat))


@pytest.mark.slow
@pytest.mark.parametrize('options, phase', [
    (FT, 'prepare'), (FT, '__call__'), (REVIEW, '__call__')])
def test_batch_norms_see_the_images_of_all_devices(options, phase):
  lesson = lessons.lesson(epoch=5.0)
  method, variables = float64.started(options, lesson)
  together, _ = float64.applied(method, variables, lesson, phase)
  np.testing.assert_allclose(
      float64.apart(options, variables, lesson, phase), together, rtol=1e-4)
