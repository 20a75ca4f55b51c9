"""CRD: negatives, memory and loss against the formulas in float64."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdih import methods
from kdih.config import fields
from kdih.distillation.lesson import Lesson
from kdih.distillation.method import Context
from kdih.methods import crd
from kdih.runtime import devices
from tests.helpers import lessons

OPTIONS = dict(kind='crd', width=6, negatives=10, temperature=0.5, momentum=0.3,
               cross_entropy=1.0, weight=0.8)
# Class by image; -1 is for validation. The batch of lessons.LABELS is 4, 0, 2, 2.
SPLIT = np.array([2, 4, 0, -1, 2, 1, 2, 4, -1, 0, 3, 2, 1], np.int32)
INDEX = np.array([1, 9, 4, 11], np.int32)
NUM_IMAGES = 11


def lesson(**changes) -> Lesson:
  return lessons.lesson(**{'index': jnp.asarray(INDEX), 'train_labels': jnp.asarray(SPLIT),
                           **changes})


@pytest.fixture(scope='module')
def method():
  return lessons.make(OPTIONS)


@pytest.fixture(scope='module')
def variables(method):
  return lessons.initial(method, lesson())


def in_float64(tree):
  return jax.tree.map(lambda array: np.asarray(array, np.float64), tree)


def unit(rows):
  return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def embed(params, embedding):
  return unit(np.asarray(embedding, np.float64) @ params['kernel'] + params['bias'])


def expected(variables, batch: Lesson, student_embedding=None, zs=None):
  """(per-image term, {bank: Z}) by the formula of the paper, with negatives one by one."""
  variables = in_float64(variables)
  negatives = np.asarray(crd.draw_negatives(
      batch.key, batch.index, batch.train_labels, OPTIONS['negatives']))
  chosen = np.concatenate([np.asarray(batch.index)[:, None], negatives], axis=1)
  v = {'student': embed(variables['params']['student'],
                        batch.student.embedding if student_embedding is None
                        else student_embedding),
       'teacher': embed(variables['params']['teacher'], batch.teacher.embedding)}
  noise, total, used = OPTIONS['negatives'] / NUM_IMAGES, 0.0, {}
  for anchor, bank in (('student', 'teacher'), ('teacher', 'student')):
    keys = variables['memory'][f'{bank}_bank'][chosen]
    scores = np.exp(np.einsum('bkw,bw->bk', keys, v[anchor]) / OPTIONS['temperature'])
    used[bank] = NUM_IMAGES * scores.mean() if zs is None else zs[bank]
    x = scores / used[bank]
    total = total - np.log(x[:, 0] / (x[:, 0] + noise + 1e-7))
    total = total - np.log(noise / (x[:, 1:] + noise + 1e-7)).sum(axis=1)
  return total, used


def step(method, variables, batch):
  term, changed = method.apply(variables, batch, mutable=['memory'], method='term')
  return term, {**variables, **changed}


@pytest.fixture(scope='module')
def after(method, variables):
  return step(method, variables, lesson())[1]


def test_the_first_batch_is_scored_by_the_formula(method, variables):
  term, changed = step(method, variables, lesson())
  expectation, zs = expected(variables, lesson())
  np.testing.assert_allclose(term, expectation, rtol=1e-5)
  for bank, z in zs.items():
    np.testing.assert_allclose(changed['memory'][f'{bank}_log_z'], np.log(z), rtol=1e-5)


def test_z_stays_what_the_first_batch_made_it(method, after):
  other = lesson(key=jax.random.key(8), student=lessons.output(7))
  zs = {bank: np.exp(float(after['memory'][f'{bank}_log_z'])) for bank in ('student', 'teacher')}
  term, changed = step(method, after, other)
  expectation, _ = expected(after, other, zs=zs)
  np.testing.assert_allclose(term, expectation, rtol=1e-5)
  for bank in zs:
    assert changed['memory'][f'{bank}_log_z'] == after['memory'][f'{bank}_log_z']
  assert not np.allclose(expectation, expected(after, other)[0], rtol=1e-3)


def test_the_loss_adds_the_labels(method, variables):
  logits = np.asarray(lesson().student.logits, np.float64)
  label_loss = (np.log(np.exp(logits).sum(1)) - logits[range(4), lessons.LABELS]).mean()
  terms, _ = method.apply(variables, lesson(), mutable=['memory'])
  term, _ = expected(variables, lesson())
  np.testing.assert_allclose(lessons.mean(terms), label_loss + 0.8 * term.mean(), rtol=1e-5)


def test_the_banks_take_in_the_batch_and_nothing_else(variables, after):
  before, batch = in_float64(variables), lesson()
  for side, output in (('student', batch.student), ('teacher', batch.teacher)):
    bank = before['memory'][f'{side}_bank'].copy()
    v = embed(before['params'][side], output.embedding)
    bank[INDEX] = unit(0.3 * bank[INDEX] + 0.7 * v)
    np.testing.assert_allclose(after['memory'][f'{side}_bank'], bank, atol=1e-6)


def test_of_an_image_that_comes_twice_the_first_counts():
  bank = lessons.single(np.random.default_rng(0).normal(size=(5, 3)))
  new = lessons.single(np.random.default_rng(1).normal(size=(4, 3)))
  found = crd.update(bank, jnp.array([2, 4, 2, 2]), new, 0.5)
  expectation = np.asarray(bank, np.float64)
  expectation[[2, 4]] = unit(0.5 * expectation[[2, 4]] + 0.5 * np.asarray(new)[:2])
  np.testing.assert_allclose(found, expectation, atol=1e-6)


@pytest.mark.slow
def test_memory_starts_uniform_and_unset(method):
  big = method.init(jax.random.key(2), lesson(train_labels=jnp.zeros(4000, jnp.int32)))['memory']
  bound = 1 / np.sqrt(6 / 3)
  for side in ('student', 'teacher'):
    bank = np.asarray(big[f'{side}_bank'])
    assert bank.shape == (4000, 6) and abs(bank).max() <= bound
    np.testing.assert_allclose([bank.mean(), bank.var()], [0, bound**2 / 3], atol=0.01)
    assert big[f'{side}_log_z'] == -np.inf
  assert not np.array_equal(big['student_bank'], big['teacher_bank'])


@pytest.mark.slow
def test_gradients_of_the_students_embedding(method, after):
  batch = lesson()
  zs = {bank: np.exp(float(after['memory'][f'{bank}_log_z'])) for bank in ('student', 'teacher')}

  def term(embedding):
    student = dataclasses.replace(batch.student, embedding=embedding)
    changed = dataclasses.replace(batch, student=student)
    return method.apply(after, changed, mutable=['memory'], method='term')[0].sum()

  found = jax.grad(term)(batch.student.embedding)
  numerical = lessons.numerical_gradient(
      lambda e: expected(after, batch, e, zs)[0].sum(), np.asarray(batch.student.embedding, float))
  np.testing.assert_allclose(found, numerical, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_z_is_a_constant_to_the_gradient_of_the_first_batch_too(method, variables):
  batch = lesson()
  _, zs = expected(variables, batch)

  def term(embedding):
    student = dataclasses.replace(batch.student, embedding=embedding)
    changed = dataclasses.replace(batch, student=student)
    return method.apply(variables, changed, mutable=['memory'], method='term')[0].sum()

  numerical = lessons.numerical_gradient(
      lambda e: expected(variables, batch, e, zs)[0].sum(),
      np.asarray(batch.student.embedding, float))
  np.testing.assert_allclose(jax.grad(term)(batch.student.embedding), numerical, rtol=1e-3,
                             atol=1e-5)


@pytest.mark.slow
def test_both_embeddings_are_learnt_and_the_banks_are_not(method, after):
  def term(variables):
    return method.apply(variables, lesson(), mutable=['memory'], method='term')[0].sum()

  gradients = jax.grad(term)(after)
  for side in ('student', 'teacher'):
    assert np.abs(gradients['params'][side]['kernel']).max() > 1e-3
  _, changed = jax.jvp(
      lambda params: step(method, {**after, 'params': params}, lesson())[1]['memory'],
      (after['params'],), (jax.tree.map(jnp.ones_like, after['params']),))
  assert all(not np.any(tangent) for tangent in jax.tree.leaves(changed))


@pytest.mark.slow
def test_negatives_are_drawn_uniformly_from_all_the_other_classes():
  number, index = 20000, np.array([1, 2, 0, 10, 5])
  drawn = np.asarray(
      crd.draw_negatives(jax.random.key(3), jnp.asarray(index), jnp.asarray(SPLIT), number))
  assert drawn.shape == (5, number)
  for row, image in zip(drawn, index, strict=True):
    allowed = np.flatnonzero((SPLIT >= 0) & (SPLIT[image] != SPLIT))
    seen, counts = np.unique(row, return_counts=True)
    np.testing.assert_array_equal(seen, allowed)
    mean = number / len(allowed)
    assert abs(counts - mean).max() < 5 * np.sqrt(mean)


@pytest.mark.slow
def test_negatives_depend_on_the_key_and_the_image_alone():
  def draw(seed, *index):
    return np.asarray(crd.draw_negatives(
        jax.random.key(seed), jnp.array(index), jnp.asarray(SPLIT), 50))

  np.testing.assert_array_equal(draw(0, 4, 11), draw(0, 11, 9, 4)[[2, 0]])
  assert (draw(0, 4) != draw(1, 4)).any()
  assert (draw(0, 4) != draw(0, 11)).any()


def test_draws_are_counted():
  drawn = np.random.default_rng(0).integers(0, 7, (3, 40))
  expectation = [np.bincount(row, minlength=9) for row in drawn]
  np.testing.assert_array_equal(crd.count(jnp.asarray(drawn), 9), expectation)


def test_four_devices_agree_with_one(method, variables):
  """Also where two of them have the same image."""
  whole = lesson(index=jnp.array([1, 9, 4, 4]))

  def on_one(index, labels, student, teacher):
    part = Lesson(
        images=whole.images, labels=labels,
        student=dataclasses.replace(whole.student, embedding=student),
        teacher=dataclasses.replace(whole.teacher, embedding=teacher), index=index, key=whole.key,
        train_labels=whole.train_labels, gather=devices.gather)
    term, changed = step(method, variables, part)
    return term, changed['memory']

  parts = (whole.index, whole.labels, whole.student.embedding, whole.teacher.embedding)
  terms, memory = jax.pmap(on_one, axis_name=devices.AXIS)(
      *(array.reshape(4, 1, *array.shape[1:]) for array in parts))
  term, single = step(method, variables, whole)
  np.testing.assert_allclose(terms.reshape(4), term, rtol=1e-5)
  for name, expectation in single['memory'].items():
    found = np.asarray(memory[name])
    np.testing.assert_array_equal(found, np.broadcast_to(found[:1], found.shape))
    np.testing.assert_allclose(found[0], expectation, rtol=1e-5, atol=1e-6)


def test_a_model_that_does_not_tell_its_embedding_is_refused(method):
  batch = lesson(teacher=dataclasses.replace(lesson().teacher, embedding=None))
  with pytest.raises(ValueError, match="the teacher does not sow 'embedding'"):
    method.init(jax.random.key(0), batch)


def test_the_entry_of_the_config_is_that_of_the_paper():
  options = fields.base().methods.crd.to_dict()
  assert options == dict(kind='crd', width=128, negatives=16384, temperature=0.07, momentum=0.5,
                         cross_entropy=1.0, weight=0.8)
  assert methods.create('crd', options, Context()).needs_train_labels


def in_logarithms(variables, batch: Lesson, temperature: float, number: int):
  """(per-image term, {bank: log Z}) of the formula in float64, negatives one by one."""
  variables = in_float64(variables)
  negatives = np.asarray(crd.draw_negatives(
      batch.key, batch.index, batch.train_labels, number))
  chosen = np.concatenate([np.asarray(batch.index)[:, None], negatives], axis=1)
  noise, total, used = number / NUM_IMAGES, 0.0, {}
  for anchor, bank in (('student', 'teacher'), ('teacher', 'student')):
    v = embed(variables['params'][anchor], getattr(batch, anchor).embedding)
    scores = np.einsum('bkw,bw->bk', variables['memory'][f'{bank}_bank'][chosen], v) / temperature
    highest = scores.max()
    used[bank] = np.log(NUM_IMAGES) + highest + np.log(np.exp(scores - highest).mean())
    x = scores - used[bank]
    rest = np.log(noise + 1e-7)
    total = total + np.logaddexp(x[:, 0], rest) - x[:, 0]
    total = total + (np.logaddexp(x[:, 1:], rest) - np.log(noise)).sum(axis=1)
  return total, used


@pytest.mark.slow
@pytest.mark.parametrize('temperature', [0.001, 0.01, 0.07])
def test_low_temperatures_give_the_term_of_the_formula(variables, temperature):
  """At 0.01 and below its exponentials leave float32."""
  method = lessons.make(OPTIONS, temperature=temperature)
  bank = 'teacher_bank'
  rows = embed(in_float64(variables)['params']['student'], lesson().student.embedding)
  memory = {**variables['memory'], bank: variables['memory'][bank].at[INDEX].set(
      lessons.single(rows))}  # A student that is exactly where the teacher's bank has it.
  started = {**variables, 'memory': memory}

  def term(params):
    found, changed = step(method, {**started, 'params': params}, lesson())
    return found.sum(), (found, changed)

  gradients, (found, changed) = jax.grad(term, has_aux=True)(variables['params'])
  expectation, log_zs = in_logarithms(started, lesson(), temperature,
                                      OPTIONS['negatives'])
  np.testing.assert_allclose(found, expectation, rtol=1e-5)
  for side, log_z in log_zs.items():
    np.testing.assert_allclose(changed['memory'][f'{side}_log_z'], log_z, rtol=1e-6)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((gradients, changed)))


@pytest.mark.slow
def test_thousands_of_negatives_add_up_without_rounding(variables):
  """Each adds 1e-5, which is lost in a logarithm of 8."""
  method = lessons.make(OPTIONS, negatives=30000)
  found, _ = step(method, variables, lesson())
  np.testing.assert_allclose(found, in_logarithms(variables, lesson(), 0.5, 30000)[0], rtol=1e-6)


def test_opposite_embeddings_at_the_lowest_temperature(after):
  """An image that its bank was near to is far from it in a later batch."""
  sharp, batch = lessons.make(OPTIONS, temperature=0.001), lesson()
  certain = step(sharp, after, batch)[1]
  turned = dataclasses.replace(
      batch, student=dataclasses.replace(batch.student, embedding=-batch.student.embedding))
  value, gradients = jax.value_and_grad(
      lambda params: step(sharp, {**certain, 'params': params}, turned)[0].sum())(
          certain['params'])
  assert value > 1e3
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
