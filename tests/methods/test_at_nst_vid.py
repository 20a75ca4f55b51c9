"""AT, NST and VID, which compare the maps of every tap, against their formulas in float64."""
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdih.config import fields
from kdih.distillation.lesson import Lesson
from tests.helpers import lessons
from tests.helpers.slow import slow

NAMES = ('at', 'nst', 'vid')
OPTIONS = {name: fields.base().methods[name].to_dict() for name in NAMES}
# The student's first map is larger than the teacher's, its second one smaller.
STUDENT_SHAPES = ((4, 4, 3), (2, 2, 5))
TEACHER_SHAPES = ((2, 2, 6), (6, 6, 4))


def lesson_of(student: dict, teacher: dict | None = None) -> Lesson:
  """A lesson in which student and teacher have these features."""
  batch = lessons.lesson(STUDENT_SHAPES, TEACHER_SHAPES)
  changed = {'student': dataclasses.replace(batch.student, features=student)}
  if teacher is not None:
    changed['teacher'] = dataclasses.replace(batch.teacher, features=teacher)
  return dataclasses.replace(batch, **changed)


def features(role: str) -> dict[str, np.ndarray]:
  output = getattr(lessons.lesson(STUDENT_SHAPES, TEACHER_SHAPES), role)
  return {tap: np.asarray(feature, np.float64) for tap, feature in output.features.items()}


@functools.cache
def variables_of(name: str):
  return lessons.initial(lessons.make(OPTIONS[name]), lesson_of(features('student')))


@functools.cache
def compiled(name: str):
  """(student, variables) to the terms, and to the gradient of their mean by the features."""
  def term(student, variables):
    terms = lessons.make(OPTIONS[name]).apply(variables, lesson_of(student), method='term')
    return terms.mean(), terms

  return jax.jit(jax.value_and_grad(term, has_aux=True))


def term_and_gradient(name: str, student: dict):
  (_, terms), gradient = compiled(name)(
      {tap: lessons.single(f) for tap, f in student.items()}, variables_of(name))
  return terms, gradient


def shrunk(feature, side):
  """The means over the windows, all of one size here."""
  batch, height, width, channels = feature.shape
  windows = feature.reshape(batch, side, height // side, side, width // side, channels)
  return windows.mean(axis=(2, 4))


def sized(student: dict):
  for tap, number in zip(student, (1, 2), strict=True):
    pair = student[tap], features('teacher')[tap]
    side = min(f.shape[1] for f in pair)
    yield number, *(shrunk(f, side) for f in pair)


def unit(vector):
  length = np.sqrt((vector**2).sum())
  return vector / length if length else vector


def at(student, variables):
  del variables

  def attention(image):
    return unit((image**2).mean(axis=-1).ravel())

  return sum(np.array([((attention(s) - attention(t))**2).mean()
                       for s, t in zip(*pair, strict=True)]) for _, *pair in sized(student))


def nst(student, variables):
  del variables

  def kernel(one, other):
    one, other = ([unit(image[..., c].ravel()) for c in range(image.shape[-1])]
                  for image in (one, other))
    return np.mean([[(a @ b)**2 for b in other] for a in one])

  return sum(np.array([kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)
                       for s, t in zip(*pair, strict=True)]) for _, *pair in sized(student))


def vid(student, variables):
  total = 0
  for number, s, t in sized(student):
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), variables['params'][f'tap{number}'])
    kernels = [params[f'conv{i}']['kernel'][0, 0] for i in (1, 2, 3)]
    mean = np.maximum(np.maximum(s @ kernels[0], 0) @ kernels[1], 0) @ kernels[2]
    variance = np.log(1 + np.exp(params['scale'])) + 1e-5
    total = total + (((mean - t)**2 / variance + np.log(variance)) / 2).mean(axis=(1, 2, 3))
  return total


FORMULAS = {'at': at, 'nst': nst, 'vid': vid}


@pytest.mark.parametrize('name', NAMES)
def test_the_term_of_every_image_is_that_of_the_formula(name):
  for scale in (1, 5):
    student = {tap: scale * feature for tap, feature in features('student').items()}
    terms, _ = term_and_gradient(name, student)
    np.testing.assert_allclose(terms, FORMULAS[name](student, variables_of(name)), rtol=2e-5)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('tap', ['stage1', slow('stage2')])
def test_its_gradient_is_that_of_the_formula(name, tap):
  # Off 0, where a ReLU has a corner.
  student = {tap: feature + 0.1 for tap, feature in features('student').items()}
  _, gradient = term_and_gradient(name, student)

  def mean_of_first_two(part):
    changed = {**student, tap: np.concatenate([part, student[tap][2:]])}
    return FORMULAS[name](changed, variables_of(name)).mean()

  expected = lessons.numerical_gradient(mean_of_first_two, student[tap][:2])
  np.testing.assert_allclose(
      gradient[tap][:2], expected, rtol=1e-3, atol=1e-4 * abs(expected).max())


@pytest.mark.parametrize('name', NAMES)
def test_the_loss_adds_the_labels_and_the_weight(name):
  batch, variables = lesson_of(features('student')), variables_of(name)
  logits = np.asarray(batch.student.logits, np.float64)
  label_loss = (np.log(np.exp(logits).sum(1)) - logits[range(4), lessons.LABELS]).mean()
  expected = (label_loss + {'at': 1000, 'nst': 50, 'vid': 1}[name]
              * FORMULAS[name](features('student'), variables).mean())
  method = lessons.make(OPTIONS[name])
  found = jax.jit(lambda v, s: lessons.mean(method.apply(v, lesson_of(s))))(
      variables, jax.tree.map(lessons.single, features('student')))
  np.testing.assert_allclose(found, expected, rtol=2e-5)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('part', ['everything', 'an image', 'a channel', 'a position'])
def test_gradients_are_of_ordinary_size_where_features_are_0(name, part):
  where = {'everything': ..., 'an image': 1, 'a channel': (..., 2), 'a position': (slice(None), 0)}
  student = features('student')
  for feature in student.values():
    feature[where[part]] = 0
  terms, gradient = term_and_gradient(name, student)
  np.testing.assert_allclose(terms, FORMULAS[name](student, variables_of(name)), rtol=2e-5)
  assert all(abs(leaf).max() < 100 for leaf in gradient.values())


@pytest.mark.parametrize('name', ['at', 'nst'])
def test_it_is_0_where_the_features_differ_by_a_factor(name):
  teacher = features('teacher')
  batch = lesson_of(jax.tree.map(lambda f: lessons.single(3 * f), teacher))
  terms = lessons.make(OPTIONS[name]).apply({}, batch, method='term')
  np.testing.assert_allclose(terms, np.zeros(4), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_maps_need_not_be_square(name):
  """Means over windows that are as large as the maps of the other side are small."""
  rng = np.random.default_rng(4)
  student, teacher = ({'stage1': rng.normal(size=(4, *shape))} for shape in ((4, 6, 3), (2, 3, 6)))
  pooled = {'stage1': student['stage1'].reshape(4, 2, 2, 3, 2, 3).mean((2, 4))}
  large, small = (lesson_of(*jax.tree.map(lessons.single, (source, teacher)))
                  for source in (student, pooled))
  method = lessons.make(OPTIONS[name])
  variables = method.init(jax.random.key(1), large)
  found, expected = (method.apply(variables, batch, method='term') for batch in (large, small))
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  assert np.ptp(found) > 1e-6


@pytest.mark.slow
def test_vid_starts_as_its_paper_does():
  widths = {'tap1': (30, 60), 'tap2': (50, 40)}
  student, teacher = ({tap: jnp.zeros((4, 2, 2, pair[side])) for tap, pair in widths.items()}
                      for side in (0, 1))
  params = lessons.make(OPTIONS['vid']).init(
      jax.random.key(0), lesson_of(student, teacher))['params']
  assert params.keys() == widths.keys()
  for tap, (narrow, wide) in widths.items():
    assert params[tap].keys() == {'conv1', 'conv2', 'conv3', 'scale'}
    np.testing.assert_allclose(np.log(1 + np.exp(params[tap]['scale'])) + 1e-5, np.full(wide, 5.0),
                               rtol=1e-6)
    for number, inputs in ((1, narrow), (2, wide), (3, wide)):
      kernel, bound = np.asarray(params[tap][f'conv{number}']['kernel']), 1 / np.sqrt(inputs)
      assert kernel.shape == (1, 1, inputs, wide) and len(params[tap][f'conv{number}']) == 1
      assert 0.97 * bound < abs(kernel).max() <= bound
      np.testing.assert_allclose(kernel.var(), bound**2 / 3, rtol=0.15)


@pytest.mark.slow
def test_vid_learns_means_and_variances():
  batch, method = lesson_of(features('student')), lessons.make(OPTIONS['vid'])
  params = variables_of('vid')['params']
  gradient = jax.jit(jax.grad(lambda p: method.apply({'params': p}, batch, method='term').mean()))(
      params)
  assert all(abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(gradient))
  expected = lessons.numerical_gradient(
      lambda scale: vid(features('student'), {'params': {
          **params, 'tap1': {**params['tap1'], 'scale': scale}}}).mean(),
      np.asarray(params['tap1']['scale'], np.float64))
  np.testing.assert_allclose(gradient['tap1']['scale'], expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize('name', NAMES)
def test_pairs_that_it_cannot_serve_are_refused(name):
  method, student = lessons.make(OPTIONS[name]), features('student')
  with pytest.raises(ValueError, match=r'the student has 1 taps \(stage1\) and the teacher 2'):
    method.init(jax.random.key(0), lesson_of({'stage1': student['stage1']}))
  flat = {tap: feature.reshape(4, -1) for tap, feature in student.items()}
  with pytest.raises(ValueError, match=r'a tap has the shape \(48,\); maps .* are needed'):
    method.init(jax.random.key(0), lesson_of(flat))
