"""Losses of logits that are infinite, huge, equal or alone, against float64 numpy.

There a logit of -inf is one of -1e12, so that no convention of 0 log 0 is needed.
"""
import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdih.config import fields
from kdih.distillation import losses
from kdih.distillation.method import Context
from tests.helpers import lessons
from tests.helpers.slow import slow

INF = np.inf
ENTRIES = fields.base().methods.to_dict()
ENTRIES['kd_sharp'] = {**ENTRIES['kd'], 'temperature': 1e-3}  # The lowest that is allowed.
ENTRIES['dih_apart'] = {**ENTRIES['dih'], 'temperature': (5.0, 2.0, 4.0), 'gain': 2.0}
ENTRIES['dih_std_apart'] = {**ENTRIES['dih_std'], 'temperature': (5.0, 2.0, 4.0)}
ENTRIES['dih_left_out'] = {**ENTRIES['dih'], 'alpha': (0.0, 0.4, 0.7), 'weights': 'learnt'}
ENTRIES['dkd_std'] = {**ENTRIES['dkd_std'], 'warmup_epochs': 0.0}
ENTRIES['dkd'] = {**ENTRIES['dkd'], 'warmup_epochs': 0.0}
WEIGHTS = {'accuracy': (0.5, 1.0, 1.5), 'learnt': (0.0, 0.3, 2.7)}
RNG = np.random.default_rng(3)
USUAL, OTHER = RNG.normal(scale=2, size=(2, 4, 5))
FAR = 1e4 * np.sign(USUAL)
LABELS = np.array([4, 0, 2, 2])


def with_inf(logits, *classes):
  """The logits, -inf at the classes of each row."""
  changed = logits.copy()
  changed[:, classes] = -INF
  return changed


# Student and teacher. The labels are 4, 0, 2 and 2, or 0 where that is the only class.
CASES = {
    'usual': (USUAL, OTHER),
    'the teacher -inf': (USUAL, with_inf(OTHER, 1)),
    'the teacher -inf, a label too': (USUAL, with_inf(OTHER, 0, 1)),
    'the teacher -inf but for one': (USUAL, with_inf(OTHER, 0, 1, 3, 4)),
    'both -inf': (with_inf(USUAL, 1, 3), with_inf(OTHER, 1, 3)),
    'far': (FAR, OTHER),
    'far from each other': (FAR, -FAR),
    'far and agreeing': (FAR, FAR),
    'the teacher far': (USUAL, 1e4 * OTHER),
    'equal': (np.full((4, 5), 0.1), np.full((4, 5), -7.3)),
    'the teacher equal': (USUAL, np.full((4, 5), 1e4)),
    'one class': (USUAL[:, :1], OTHER[:, :1]),
    'one image': (USUAL[:1], OTHER[:1]),
    'one image of one class, far': (FAR[:1, :1], -FAR[:1, :1]),
}
TYPICAL = ('ce', 'kd', 'kd_std', 'kd_sharp', 'dkd', 'dih', 'dih_apart', 'dih_std')
LOGIT_METHODS = [name for name, entry in ENTRIES.items()
                 if entry['kind'] in ('ce', 'kd', 'takd', 'dih', 'dkd')]


def quick(name, case):
  return name in TYPICAL and case in ('usual', 'the teacher -inf, a label too') or (
      name == 'kd' and case in ('both -inf', 'far from each other', 'equal', 'one class'))


PAIRS = [(name, case) if quick(name, case) else slow(name, case)
         for name in LOGIT_METHODS for case in CASES]


def labels_of(logits):
  return np.minimum(LABELS, logits.shape[-1] - 1)[:len(logits)]


def members_of(teacher):
  """Three that differ; where one of them is -inf, another need not be."""
  return {'stage1': np.roll(teacher, 1, axis=0) / 2, 'stage2': teacher, 'final': teacher[:, ::-1]}


def lesson_of(student, teacher):
  def of(signal, logits):
    cut = jax.tree.map(lambda x: x[:len(logits)], signal)
    return dataclasses.replace(cut, logits=lessons.single(logits))

  batch = lessons.lesson()
  return dataclasses.replace(
      batch, images=batch.images[:len(student)], labels=jnp.asarray(labels_of(student)),
      student=of(batch.student, student),
      teacher=dataclasses.replace(of(batch.teacher, teacher), members=jnp.stack(
          [lessons.single(z) for z in members_of(teacher).values()], axis=1)),
      weights={rule: jnp.array(numbers) for rule, numbers in WEIGHTS.items()})


def evaluate(method, variables, lesson):
  """The loss of a method, and its gradient by the student's logits summed over the batch."""
  def loss(logits):
    student = dataclasses.replace(lesson.student, logits=logits)
    terms, _ = method.apply(variables, dataclasses.replace(lesson, student=student),
                            mutable=['batch_stats'])
    value = lessons.total(terms)
    return value.sum(), value

  (_, value), gradient = jax.value_and_grad(loss, has_aux=True)(lesson.student.logits)
  return np.asarray(value), np.asarray(gradient)


def log_soft(z):
  z = z - z.max(-1, keepdims=True)
  return z - np.log(np.exp(z).sum(-1, keepdims=True))


def ce(z):
  return -log_soft(z)[np.arange(len(z)), labels_of(z)]


def kl(teacher, student):
  log_p, log_q = log_soft(teacher), log_soft(student)
  return (np.exp(log_p) * (log_p - log_q)).sum(-1)


def z_score(z):
  if np.ptp(z, axis=-1).max() == 0:
    return np.zeros_like(z)
  return (z - z.mean(-1, keepdims=True)) / (1e-7 + z.std(-1, ddof=1, keepdims=True))


def decoupled(student, teacher, temperature):
  """T^2 times TCKD and NCKD, image by image, with the label taken out of a row."""
  found = []
  for z, t, y in zip(student / temperature, teacher / temperature, labels_of(student),
                     strict=True):
    z, t = log_soft(z), log_soft(t)
    others = [np.delete(row, y) for row in (t, z)]
    if not others[0].size:
      found.append((0, 0))
      continue
    rest = [row.max() + np.log(np.exp(row - row.max()).sum()) for row in others]
    two = [np.array([[row[y], sum_]]) for row, sum_ in zip((t, z), rest, strict=True)]
    found.append((kl(*two)[0], kl(*(row[None] for row in others))[0]))
  return temperature**2 * np.array(found).T


def reference(entry, student, teacher, seen=None):
  """[batch], by the formulas of the methods' docstrings; the teacher's part sees `seen`."""
  view = z_score if entry.get('standardise') else lambda z: z
  seen = view(student) if seen is None else seen
  if entry['kind'] == 'ce':
    return ce(student)
  if entry['kind'] == 'dkd':
    target, others = decoupled(seen, view(teacher), entry['temperature'])
    return entry['cross_entropy'] * ce(student) + entry['alpha'] * target + entry['beta'] * others
  members, alphas, temperatures, weights = [teacher], [entry['alpha']], [entry['temperature']], [1]
  if entry['kind'] == 'dih':
    members = list(members_of(teacher).values())
    if entry['members'] == 'teacher':
      members = [members[-1]] * 3
    alphas, temperatures = (np.broadcast_to(entry[name], 3) for name in ('alpha', 'temperature'))
    weights = WEIGHTS.get(entry['weights'], (1, 1, 1))
  chosen = [(a, w, t, member) for a, w, t, member
            in zip(alphas, weights, temperatures, members, strict=True) if a]
  taught = entry.get('gain', 1) * sum(
      a * w * t**2 * kl(view(member) / t, seen / t) for a, w, t, member in chosen)
  labelled = sum(1 - a for a, *_ in chosen) * ce(student)
  if entry.get('cross_entropy') == 'once' or entry.get('reduction') == 'mean':
    labelled = labelled / len(chosen)
  if entry.get('reduction') == 'mean':
    taught = taught / len(chosen)
  scale = 3 if entry.get('scale') == 'cohort' else 1
  return scale * (labelled + taught)


def limit(logits):
  return np.where(logits == -INF, -1e12, logits)


def expected(entry, student, teacher):
  """The loss, and its gradient by differences; equal logits are standardised without any."""
  student, teacher = limit(student), limit(teacher)
  constant = np.zeros_like(student) if entry.get('standardise') and np.ptp(student) == 0 else None
  gradient = lessons.numerical_gradient(
      lambda z: reference(entry, z, teacher, constant).sum(), student, step=1e-4)
  return reference(entry, student, teacher), gradient


@pytest.mark.parametrize('name, case', PAIRS)
def test_loss_and_gradient_are_those_of_float64(name, case):
  student, teacher = CASES[case]
  lesson = lesson_of(student, teacher)
  right, slope = expected(ENTRIES[name], student, teacher)
  shares = (True, False) if ENTRIES[name]['kind'] == 'dih' else (True,)
  for mean_soft_label in shares:
    method = lessons.make(ENTRIES[name], Context(num_members=3, mean_soft_label=mean_soft_label))
    value, gradient = evaluate(method, {}, lesson)
    np.testing.assert_allclose(value, right, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-4)


def test_loss_and_gradient_worked_by_hand():
  """Of a teacher who gives the third class nothing, and the others 1/2 each; the student 1/3."""
  student, teacher = lessons.single([[0, 0, 0]]), lessons.single([[0, 0, -INF]])
  value, gradient = jax.value_and_grad(
      lambda z: losses.tempered_kl(z, teacher, 2.0).sum())(student)
  np.testing.assert_allclose(value, 4 * np.log(3 / 2), rtol=1e-6)
  np.testing.assert_allclose(gradient, [[-1 / 3, -1 / 3, 2 / 3]], rtol=1e-6)  # T (q - p)


def test_standardised_logits_of_which_one_is_infinite_worked_by_hand():
  """Of four logits that one falls away from, the others' score is 1/2 and its own -3/2."""
  found = losses.standardise(lessons.single([[3, -1, -INF, 2], [9, -3.4e38, 9, 9]]))
  np.testing.assert_allclose(found[0], [0.5, 0.5, -1.5, 0.5], rtol=1e-6)
  np.testing.assert_allclose(found[1], [0.5, -1.5, 0.5, 0.5], rtol=1e-6)


@pytest.mark.parametrize('value', [0.1, 1e4, -7.3, 1e-30])
@pytest.mark.parametrize('classes', [1, 7, slow(100)])
def test_equal_logits_are_standardised_to_0_however_their_mean_is_rounded(value, classes):
  equal, way = jnp.full((2, classes), value), jnp.arange(float(classes))[None]
  found, gradient = jax.value_and_grad(lambda z: (losses.standardise(z) * way).sum())(equal)
  np.testing.assert_array_equal(found, 0)
  np.testing.assert_array_equal(gradient, np.zeros((2, classes)))


@pytest.mark.parametrize('name', ['ce', 'kd', 'takd', 'dkd', 'dih', 'dih_apart'])
def test_a_student_that_excludes_what_it_is_taught_has_an_infinite_loss_and_the_limits_gradient(
    name):
  excluded = np.where(np.eye(5)[LABELS] > 0, -INF, USUAL)
  value, gradient = evaluate(lessons.make(ENTRIES[name], Context(num_members=3)), {},
                             lesson_of(excluded, OTHER))
  _, slope = expected(ENTRIES[name], np.maximum(excluded, -1e3), OTHER)
  np.testing.assert_array_equal(value, np.full(4, INF))
  np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-4)


def test_a_logit_that_is_no_number_is_not_hidden():
  """Neither of the student nor of a teacher that gives all other classes the probability 0."""
  for student, teacher in ((with_nan(USUAL), OTHER), (USUAL, with_nan(OTHER))):
    for name in ('kd', 'kd_std', 'dkd', 'dkd_std', 'dih', 'dih_apart', 'dih_std'):
      value, _ = evaluate(lessons.make(ENTRIES[name], Context(num_members=3)), {},
                          lesson_of(student, teacher))
      assert np.isnan(value).all(), name


def with_nan(logits):
  changed = with_inf(logits, 1)
  changed[:, 2] = np.nan
  return changed


class Constant(nn.Module):
  """A peer with the same logits for all images."""

  logits: tuple[tuple[float, ...], ...]

  @nn.compact
  def __call__(self, images, train):
    del images, train
    return lessons.single(self.logits)


@pytest.mark.parametrize('case', CASES)
def test_peers(case):
  """A peer that excludes what the student does not has an infinite loss of its own."""
  student, peer = CASES[case]
  context = Context(model=lambda name: Constant(tuple(map(tuple, peer))))
  method = lessons.make(ENTRIES['dml'], context, peers=('p',), alpha=0.5, temperature=2.0)
  value, gradient = evaluate(method, {}, lesson_of(student, peer))
  entry = dict(kind='kd', alpha=0.5, temperature=2.0)
  (right, slope), (back, _) = expected(entry, student, peer), expected(entry, peer, student)
  np.testing.assert_allclose(
      value, np.where(right + back > 1e9, INF, right + back), rtol=2e-5, atol=2e-5)
  np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('case', [
    'the teacher -inf, a label too', 'both -inf', 'far from each other', 'equal', 'one class',
    'one image of one class, far'])
@pytest.mark.parametrize('name', ['mhkd', 'tofd'])
def test_methods_with_heads_of_their_own(name, case):
  """What the models' own logits add to the loss of logits that are all 0."""
  student, teacher = CASES[case]
  method, entry = lessons.make(ENTRIES[name]), ENTRIES[name]
  variables = lessons.initial(method, lesson_of(student, teacher))
  (value, gradient), (nothing, _) = (
      evaluate(method, variables, lesson_of(*pair))
      for pair in ((student, teacher), np.zeros((2, *student.shape))))

  def own(student, teacher):
    if name == 'mhkd':
      return reference({**entry, 'kind': 'kd'}, student, teacher)
    temperature = entry['temperature']
    soft = -np.exp(log_soft(teacher / temperature)) * log_soft(student / temperature)
    return (ce(student) + soft.sum(-1)).mean()

  student, teacher, zeros = limit(student), limit(teacher), np.zeros(student.shape)
  np.testing.assert_allclose(
      value - nothing, own(student, teacher) - own(zeros, zeros), rtol=1e-4, atol=1e-4)
  slope = lessons.numerical_gradient(lambda z: own(z, teacher).sum(), student, step=1e-4)
  np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-4)
