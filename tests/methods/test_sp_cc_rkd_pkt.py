"""SP, CC, RKD and PKT, which compare the images of a batch, against their formulas in float64."""
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdih import errors
from kdih.config import fields
from kdih.distillation.lesson import Lesson
from kdih.runtime import devices
from tests.helpers import lessons
from tests.helpers.slow import slow

NAMES = ('sp', 'cc', 'rkd', 'pkt')
OPTIONS = {name: fields.base().methods[name].to_dict() for name in NAMES}
OPTIONS['cc']['width'] = 3


def lesson_of(name: str, student, teacher=None, **changes) -> Lesson:
  """A lesson in which student and teacher say these: deepest features for sp, else embeddings."""
  batch = lessons.lesson(**changes)

  def saying(output, array):
    array = lessons.single(array)
    if name != 'sp':
      return dataclasses.replace(output, embedding=array)
    return dataclasses.replace(output, features={**output.features, 'stage2': array})

  teacher = inputs_of(name, 'teacher') if teacher is None else teacher
  return dataclasses.replace(batch, student=saying(batch.student, student),
                             teacher=saying(batch.teacher, teacher))


def inputs_of(name: str, role: str) -> np.ndarray:
  output = getattr(lessons.lesson(), role)
  return np.asarray(output.features['stage2'] if name == 'sp' else output.embedding, np.float64)


def term(name: str, variables, batch: Lesson) -> jax.Array:
  return lessons.make(OPTIONS[name]).apply(variables, batch, method='term')


@functools.cache
def compiled(name: str):
  """(student, variables, teacher) to the term and its gradient by `student`."""
  return jax.jit(jax.value_and_grad(
      lambda student, variables, teacher: term(name, variables, lesson_of(name, student, teacher))))


def term_and_gradient(name: str, student, teacher, variables):
  student, teacher = lessons.single(student), lessons.single(teacher)
  return compiled(name)(student, variables, teacher)


@functools.cache
def variables_of(name: str):
  return lessons.initial(
      lessons.make(OPTIONS[name]), lesson_of(name, inputs_of(name, 'student')))


def unit(vector):
  length = np.sqrt((vector**2).sum())
  return vector / length if length else vector


def huber(x):
  return x**2 / 2 if abs(x) <= 1 else abs(x) - 0.5


def sp(student, teacher, variables):
  del variables

  def similarities(f):
    return np.array([unit(np.array([(a * b).sum() for b in f])) for a in f])

  return ((similarities(student) - similarities(teacher))**2).sum() / len(student)**2


def cc(student, teacher, variables):
  params = jax.tree.map(lambda p: np.asarray(p, np.float64), variables['params'])
  apart = abs(student @ params['student']['kernel'] + params['student']['bias']
              - teacher @ params['teacher']['kernel'] - params['teacher']['bias'])
  return np.mean([apart[i] @ apart[i + 1] for i in range(len(student) - 1)])


def rkd(student, teacher, variables):
  del variables
  images = range(len(student))

  def distances(e):
    d = np.array([[np.sqrt(((e[i] - e[j])**2).sum()) for j in images] for i in images])
    return d / (d[~np.eye(len(e), dtype=bool)].mean() or 1)

  def cosine(e, i, j, k):
    return unit(e[j] - e[i]) @ unit(e[k] - e[i])

  apart = (distances(student) - distances(teacher)).ravel()
  turned = [cosine(student, i, j, k) - cosine(teacher, i, j, k)
            for i in images for j in images for k in images]
  return 25 * np.mean([huber(x) for x in apart]) + 50 * np.mean([huber(x) for x in turned])


def pkt(student, teacher, variables):
  del variables

  def probabilities(e):
    near = np.array([[(unit(a) @ unit(b) + 1) / 2 for b in e] for a in e])
    return near / near.sum(axis=1, keepdims=True)

  p, q = probabilities(teacher), probabilities(student)
  return (p * np.log((p + 1e-7) / (q + 1e-7))).mean()


FORMULAS = {'sp': sp, 'cc': cc, 'rkd': rkd, 'pkt': pkt}


@pytest.mark.parametrize('name', NAMES)
def test_term_and_gradient_are_those_of_the_formula(name):
  teacher, variables = inputs_of(name, 'teacher'), variables_of(name)
  for student in (inputs_of(name, 'student'), 4 * inputs_of(name, 'student')):
    loss, gradient = term_and_gradient(name, student, teacher, variables)
    assert loss.shape == ()
    np.testing.assert_allclose(loss, FORMULAS[name](student, teacher, variables), rtol=2e-5)
    expected = lessons.numerical_gradient(
        lambda x: FORMULAS[name](x, teacher, variables), student)
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize('name', NAMES)
def test_the_loss_adds_the_labels_and_the_weight(name):
  student, variables = inputs_of(name, 'student'), variables_of(name)
  batch = lesson_of(name, student)
  logits = np.asarray(batch.student.logits, np.float64)
  label_loss = (np.log(np.exp(logits).sum(1)) - logits[range(4), lessons.LABELS]).mean()
  weight = {'sp': 3000, 'cc': 0.02, 'rkd': 1, 'pkt': 30000}[name]
  expected = label_loss + weight * FORMULAS[name](student, inputs_of(name, 'teacher'), variables)
  found = lessons.mean(lessons.make(OPTIONS[name]).apply(variables, batch))
  np.testing.assert_allclose(found, expected, rtol=2e-5)


@pytest.mark.parametrize('name', ['sp', *(slow(name) for name in NAMES if name != 'sp')])
def test_four_devices_learn_what_one_learns_from_the_whole_batch(name):
  """Each device has one image, and the terms of a single image are constant."""
  inputs, variables = inputs_of(name, 'student'), variables_of(name)
  rng = np.random.default_rng(3)
  width = inputs.shape[-1]
  model = {'model': lessons.single(rng.normal(size=(width, width)) + np.eye(width)),
           'method': variables}

  def loss(trained, inputs, teacher, **changes):
    return term(name, trained['method'],
                lesson_of(name, inputs @ trained['model'], teacher, **changes))

  def on_one(trained, inputs, teacher):
    return jax.value_and_grad(loss)(trained, inputs, teacher, gather=devices.gather)

  inputs, teacher = lessons.single(inputs), lessons.single(inputs_of(name, 'teacher'))
  expected_loss, expected = jax.jit(jax.value_and_grad(loss))(model, inputs, teacher)
  found_loss, found = jax.pmap(on_one, axis_name=devices.AXIS, in_axes=(None, 0, 0))(
      model, inputs[:, None], teacher[:, None])
  np.testing.assert_allclose(found_loss, [expected_loss] * 4, rtol=1e-5)
  for path, gradient in jax.tree_util.tree_leaves_with_path(expected):
    scale = abs(gradient).max()
    mean = np.mean(dict(jax.tree_util.tree_leaves_with_path(found))[path], axis=0)
    assert scale > 1e-6
    np.testing.assert_allclose(mean, gradient, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('degenerate', ['zeros', 'one is zeros', 'identical', 'two identical',
                                        'one image', 'two images'])
def test_gradients_are_of_ordinary_size_where_directions_and_distances_are_0(name, degenerate):
  student, teacher = inputs_of(name, 'student'), inputs_of(name, 'teacher')
  variables = variables_of(name)
  student = {'zeros': 0 * student, 'one is zeros': np.r_[0 * student[:1], student[1:]],
             'identical': np.repeat(student[:1], 4, 0),
             'two identical': np.r_[student[:1], student[:3]], 'one image': student[:1],
             'two images': student[:2]}[degenerate]
  teacher = teacher[:len(student)]
  loss, gradient = term_and_gradient(name, student, teacher, variables)
  expected = FORMULAS[name](student, teacher, variables) if len(student) > 1 else 0
  np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=1e-6)
  assert abs(gradient).max() < 100


def test_a_teacher_whose_embeddings_are_all_the_same_serves_rkd():
  student = inputs_of('rkd', 'student')
  teacher = 0 * inputs_of('rkd', 'teacher') + 1
  loss, gradient = term_and_gradient('rkd', student, teacher, {})
  np.testing.assert_allclose(loss, rkd(student, teacher, {}), rtol=1e-5)
  assert np.isfinite(gradient).all()


def test_pkt_of_embeddings_of_0_worked_by_hand():
  """All images are equally near to them; a right angle's two probabilities are 2/3 and 1/3."""
  zeros, apart = np.zeros((2, 2)), np.eye(2)
  for student, teacher, p, q in ((zeros, apart, (2 / 3, 1 / 3), (1 / 2, 1 / 2)),
                                 (apart, zeros, (1 / 2, 1 / 2), (2 / 3, 1 / 3)),
                                 (zeros, zeros, (1 / 2, 1 / 2), (1 / 2, 1 / 2))):
    loss, gradient = term_and_gradient('pkt', student, teacher, {})
    expected = sum(a * np.log(a / b) for a, b in zip(p, q, strict=True)) / 2
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-7)
    if student is zeros:
      np.testing.assert_array_equal(gradient, zeros)
    else:
      # The probabilities are 1 / (1 + c) and c / (1 + c), with c = (1 + cosine) / 2 = 1/2, and the
      # slope by the cosine is half of (1 / (1 + c) - 1 / 2c) / 2.
      np.testing.assert_allclose(gradient, [[0, -1 / 12], [-1 / 12, 0]], rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_pkt_bears_opposite_embeddings():
  """Their cosine may be rounded to below -1, and its probability to below 0."""
  rows = np.random.default_rng(0).normal(size=(500, 4096))
  pairs = lessons.single(np.stack([rows, -rows], axis=1))
  losses, gradients = jax.vmap(lambda x: compiled('pkt')(x, {}, x))(pairs)
  assert np.isfinite(gradients).all()
  np.testing.assert_allclose(losses, 0, atol=1e-6)


def test_rkd_weights_distances_and_angles():
  student, teacher = inputs_of('rkd', 'student'), inputs_of('rkd', 'teacher')

  def found(**changes):
    batch = lesson_of('rkd', student, teacher)
    return lessons.make(OPTIONS['rkd'], **changes).apply({}, batch, method='term')

  alone = found(distance=3.0, angle=0.0) / 3, found(distance=0.0, angle=2.0) / 2
  np.testing.assert_allclose(found(), 25 * alone[0] + 50 * alone[1], rtol=1e-5)
  assert min(alone) > 1e-3


def test_sp_needs_no_equal_number_of_taps_and_no_maps():
  flat = lessons.single(np.random.default_rng(4).normal(size=(4, 7)))
  batch = lesson_of('sp', inputs_of('sp', 'student'))
  student = dataclasses.replace(batch.student, features={'last': flat})
  found = term('sp', {}, dataclasses.replace(batch, student=student))
  np.testing.assert_allclose(
      found, sp(np.asarray(flat, np.float64), inputs_of('sp', 'teacher'), {}), rtol=1e-5)


def test_cc_learns_both_embeddings():
  variables, batch = variables_of('cc'), lesson_of('cc', inputs_of('cc', 'student'))
  shapes = jax.tree.map(jnp.shape, variables['params'])
  assert shapes == {'student': {'kernel': (5, 3), 'bias': (3,)},
                    'teacher': {'kernel': (8, 3), 'bias': (3,)}}
  gradient = jax.jit(jax.grad(lambda v: term('cc', v, batch)))(variables)
  assert all(abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize('name, role, message', [
    ('sp', 'student', 'the student has no taps; name one with config.student.taps'),
    ('sp', 'teacher', 'the teacher has no taps; name one with config.student.teacher_taps'),
    *((name, role, f"the {role} does not sow 'embedding', the input of its classifier, into the "
       "collection 'intermediates'") for name in ('cc', 'rkd', 'pkt')
      for role in ('student', 'teacher'))])
def test_models_that_do_not_tell_enough_are_refused(name, role, message):
  batch = lessons.lesson()
  mute = dataclasses.replace(getattr(batch, role), features={}, embedding=None)
  with pytest.raises(ValueError) as caught:
    lessons.make(OPTIONS[name]).init(
        jax.random.key(0), dataclasses.replace(batch, **{role: mute}))
  assert str(caught.value) == message


def test_terms_of_which_none_counts_are_refused():
  with pytest.raises(errors.ConfigError) as caught:
    lessons.make(OPTIONS['rkd'], distance=0.0, angle=0.0)
  assert str(caught.value) == (
      'config.methods.mine.distance: and angle are both 0; set one of them above 0')
