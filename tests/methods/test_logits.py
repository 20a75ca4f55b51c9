"""DKD, standardised logits and weighted members, against their formulas in float64."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdih import errors
from kdih.config import fields
from kdih.distillation import losses
from kdih.distillation.lesson import Lesson
from kdih.distillation.method import Context
from tests.helpers import lessons

ENTRIES = fields.base().methods.to_dict()
DKD = {**ENTRIES['dkd'], 'warmup_epochs': 0.0}
STUDENT, TEACHER = (np.asarray(output.logits, np.float64)
                    for output in (lessons.lesson().student, lessons.lesson().teacher))
MEMBERS = {name: np.random.default_rng(seed).normal(scale=3, size=STUDENT.shape)
           for seed, name in enumerate(('stage1', 'stage2', 'final'), 20)}
WEIGHTS = {'accuracy': (0.5, 1.0, 1.5), 'learnt': (0.0, 0.3, 2.7)}


def lesson_of(student=STUDENT, teacher=TEACHER, **changes) -> Lesson:
  batch = lessons.lesson(
      weights={rule: jnp.array(numbers) for rule, numbers in WEIGHTS.items()}, **changes)
  signal = lessons.signal(batch.teacher, list(MEMBERS.values()))
  return dataclasses.replace(
      batch, student=dataclasses.replace(batch.student, logits=lessons.single(student)),
      teacher=dataclasses.replace(signal, logits=lessons.single(teacher)))


def loss(options, *logits, epoch=0.0, **changes):
  return taught(lessons.make(options, Context(num_members=3), **changes),
                lesson_of(*logits, epoch=epoch))


def taught(method, batch):
  return lessons.total(method.apply({}, batch))


def soft(z, temperature=1.0):
  powers = np.exp(z / temperature)
  return powers / powers.sum(-1, keepdims=True)


def kl(p, q):
  return (p * np.log(p / q)).sum(-1)


def ce(z):
  return -np.log(soft(z)[range(len(z)), lessons.LABELS])


def z_score(z):
  """By PyTorch's standard deviation, that divides by one less than the number of classes."""
  mean = z.mean(-1, keepdims=True)
  return (z - mean) / (1e-7 + np.sqrt(((z - mean)**2).sum(-1, keepdims=True) / (z.shape[-1] - 1)))


def tckd_nckd(student, teacher, temperature):
  """T^2 times both, [batch], from the probabilities themselves."""
  both = []
  for z, t, y in zip(student, teacher, lessons.LABELS, strict=True):
    q, p = soft(z, temperature), soft(t, temperature)
    target = kl(np.array([p[y], 1 - p[y]]), np.array([q[y], 1 - q[y]]))
    others = kl(np.delete(p, y) / (1 - p[y]), np.delete(q, y) / (1 - q[y]))
    both.append((temperature**2 * target, temperature**2 * others))
  return np.array(both).T


def dkd(student, alpha=1.0, beta=8.0, temperature=4.0, cross_entropy=1.0, view=lambda z: z):
  target, others = tckd_nckd(view(student), view(TEACHER), temperature)
  return cross_entropy * ce(student) + alpha * target + beta * others


@pytest.mark.parametrize('options', [
    {}, dict(alpha=0.0, beta=2.0), dict(alpha=3.0, beta=0.0),
    dict(cross_entropy=0.0, temperature=1.0), dict(cross_entropy=0.5, temperature=9.0)])
def test_dkd_is_its_formula(options):
  np.testing.assert_allclose(loss(DKD, **options), dkd(STUDENT, **options), rtol=5e-5)


def test_dkd_weighted_by_what_the_teacher_gives_the_others_is_kd():
  """The identity of its paper, equation (6): KL = TCKD + (1 - p_y) NCKD."""
  target = loss(DKD, alpha=1.0, beta=0.0, cross_entropy=0.0)
  others = loss(DKD, alpha=0.0, beta=1.0, cross_entropy=0.0)
  p_y = soft(TEACHER, 4.0)[range(4), lessons.LABELS]
  np.testing.assert_allclose(
      target + (1 - p_y) * others, 16 * kl(soft(TEACHER, 4.0), soft(STUDENT, 4.0)), rtol=1e-5)


@pytest.mark.parametrize('standardise', [False, True])
def test_gradients_of_dkd(standardise):
  view = z_score if standardise else lambda z: z
  found = jax.jit(jax.grad(lambda z: loss(DKD, z, standardise=standardise).sum()))(
      lessons.single(STUDENT))
  expected = lessons.numerical_gradient(lambda z: dkd(z, view=view).sum(), STUDENT)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_teacher_of_dkd_warms_up_and_the_labels_do_not():
  cold, warm = ce(STUDENT), dkd(STUDENT)
  for epoch, share in ((0.0, 0.0), (5.0, 0.25), (20.0, 1.0), (300.0, 1.0)):
    found = loss(DKD, warmup_epochs=20.0, epoch=jnp.array(epoch))
    np.testing.assert_allclose(found, cold + share * (warm - cold), rtol=1e-5)


def test_dkd_bears_logits_that_are_certain():
  certain = 1e4 * np.eye(5)
  agreeing, opposed = certain[lessons.LABELS], certain[(lessons.LABELS + 1) % 5]
  for student, teacher, least in ((agreeing, agreeing, 0), (opposed, agreeing, 1e3)):
    value, gradient = jax.value_and_grad(lambda z, t=teacher: loss(DKD, z, t).sum())(
        lessons.single(student))
    assert np.isfinite(gradient).all()
    assert value >= least
  np.testing.assert_allclose(loss(DKD, agreeing, agreeing), np.zeros(4), atol=1e-5)


def test_dkd_of_two_classes_has_no_others():
  two = STUDENT[:2, :2], TEACHER[:2, :2]
  batch = dataclasses.replace(lesson_of(*two), labels=jnp.array([0, 1]))
  found = taught(lessons.make(DKD, alpha=0.0, cross_entropy=0.0), batch)
  np.testing.assert_allclose(found, np.zeros(2), atol=1e-6)


def test_logits_are_standardised_row_by_row():
  found = losses.standardise(lessons.single(STUDENT))
  np.testing.assert_allclose(found, z_score(STUDENT), rtol=1e-5)
  np.testing.assert_allclose(found.mean(-1), np.zeros(4), atol=1e-6)
  np.testing.assert_allclose(np.var(found, axis=-1), np.full(4, 4 / 5), rtol=1e-5)


def test_equal_logits_are_standardised_without_a_nan():
  """A classifier that begins with zeros gives them."""
  gradient = jax.grad(lambda z: (losses.standardise(z) * jnp.arange(5.0)[None]).sum())
  for value in (0.0, 3.0):
    equal = jnp.full((2, 5), value)
    np.testing.assert_array_equal(losses.standardise(equal), np.zeros((2, 5)))
    np.testing.assert_array_equal(gradient(equal), np.zeros((2, 5)))


# The paper's weights: 0.1 CE + 9 T^2 KL for KD, 9 times the usual ones for DKD, T 2.
@pytest.mark.parametrize('name, expected', [
    ('kd_std', 0.1 * ce(STUDENT)
     + 9 * 4 * kl(soft(z_score(TEACHER), 2.0), soft(z_score(STUDENT), 2.0))),
    ('dkd_std', dkd(STUDENT, alpha=9.0, beta=72.0, temperature=2.0, view=z_score)),
    ('dih_std', 0.1 * ce(STUDENT) + 9 * 4 * np.mean(
        [kl(soft(z_score(z), 2.0), soft(z_score(STUDENT), 2.0)) for z in MEMBERS.values()], 0))])
def test_entries_with_standardised_logits(name, expected):
  np.testing.assert_allclose(loss(ENTRIES[name], epoch=20.0), expected, rtol=1e-5)


@pytest.mark.parametrize('name', ['kd_std', 'dkd_std', 'dih_std'])
def test_what_is_standardised_ignores_scale_and_shift_of_the_student(name):
  """The labels do not: their cross-entropy stays that of the logits themselves."""
  changed = STUDENT * np.array([[0.3], [2], [5], [1]]) + np.array([[1], [-4], [0.5], [3]])
  label_weight = 1.0 if name == 'dkd_std' else 0.1
  less_labels = [loss(ENTRIES[name], z, epoch=20.0) - label_weight * ce(z)
                 for z in (STUDENT, changed)]
  np.testing.assert_allclose(*less_labels, rtol=1e-4)
  plain = [loss(ENTRIES[name], z, epoch=20.0, standardise=False) - label_weight * ce(z)
           for z in (STUDENT, changed)]
  assert not np.allclose(*plain, rtol=0.1)


@pytest.mark.parametrize('name', ['kd', 'dih'])
def test_gain_weights_the_teachers_and_not_the_labels(name):
  once, thrice, silent = (loss(ENTRIES[name], **changes) for changes in (
      {}, {'gain': 3.0}, {'gain': 1e-9}))
  np.testing.assert_allclose(thrice - silent, 3 * (once - silent), rtol=1e-5)
  branches = 3 if name == 'dih' else 1
  np.testing.assert_allclose(silent, branches * 0.9 * ce(STUDENT), rtol=1e-5)


@pytest.mark.parametrize('rule', ['accuracy', 'learnt'])
@pytest.mark.parametrize('reduction', ['sum', 'mean'])
def test_members_are_weighted(rule, reduction):
  kls = [25 * kl(soft(z, 5.0), soft(STUDENT, 5.0)) for z in MEMBERS.values()]
  expected = 3 * 0.9 * ce(STUDENT) + 0.1 * np.tensordot(WEIGHTS[rule], kls, axes=1)
  found = loss(ENTRIES['dih'], weights=rule, reduction=reduction)
  np.testing.assert_allclose(found, expected / (3 if reduction == 'mean' else 1), rtol=1e-5)
  assert not np.allclose(found, loss(ENTRIES['dih'], reduction=reduction), rtol=1e-2)


def test_equal_weights_are_those_of_dih():
  ones = {rule: jnp.ones(3) for rule in WEIGHTS}
  batch = dataclasses.replace(lesson_of(), weights=ones)
  for rule in WEIGHTS:
    found = taught(lessons.make(ENTRIES['dih'], Context(num_members=3), weights=rule), batch)
    np.testing.assert_allclose(found, loss(ENTRIES['dih']), rtol=1e-6)


# Every member has the mean soft label teach in its place, but for those of another temperature.
@pytest.mark.parametrize('changes', [
    {}, dict(weights='accuracy'), dict(weights='learnt', gain=3.0),
    dict(alpha=(0.1, 0.7, 0.4)), dict(alpha=(0.0, 0.7, 1.0), reduction='mean'),
    dict(alpha=(0.2, 0.0, 0.4), temperature=(2.0, 7.0, 2.0), cross_entropy='once'),
    dict(standardise=True, reduction='mean', weights='accuracy'), dict(members='teacher'),
    dict(temperature=(5.0, 4.0, 5.0))])
def test_the_mean_soft_label_teaches_what_the_members_do(changes):
  def both(mean_soft_label):
    method = lessons.make(ENTRIES['dih'], Context(num_members=3, mean_soft_label=mean_soft_label),
                          **changes)
    loss, pull = jax.vjp(lambda z: taught(method, lesson_of(z)), lessons.single(STUDENT))
    return loss, pull(jnp.ones(4))[0]

  for one, other in zip(jax.jit(lambda: both(True))(), jax.jit(lambda: both(False))(),
                        strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize('temperature, other', [(5.0, True), ((5.0, 5.0, 4.0), False)])
def test_the_switch_changes_the_program_where_the_members_share_a_temperature(temperature, other):
  def program(mean_soft_label):
    method = lessons.make(ENTRIES['dih'], Context(num_members=3, mean_soft_label=mean_soft_label),
                          temperature=temperature)
    return str(jax.make_jaxpr(lambda z: method.apply({}, lesson_of(z)))(STUDENT))

  assert (program(True) != program(False)) == other


def test_weights_of_a_run_without_validation_are_refused():
  batch = dataclasses.replace(lesson_of(), weights={})
  method = lessons.make(ENTRIES['dih_learnt'], Context(num_members=3))
  with pytest.raises(ValueError, match=r'config\.data\.validation_fraction above 0, or weights to'):
    method.apply({}, batch)


def test_a_teacher_without_weight_is_refused():
  with pytest.raises(errors.ConfigError) as caught:
    lessons.make(DKD, alpha=0.0, beta=0.0)
  assert str(caught.value) == (
      'config.methods.mine.alpha: and beta are both 0, and the teacher has no weight; use the '
      'method ce')


def test_the_entries_are_those_of_their_papers():
  """LSKD multiplies DKD's weights by 9 and keeps its cross-entropy and warm-up."""
  usual = dict(kind='dkd', alpha=1.0, beta=8.0, temperature=4.0, cross_entropy=1.0,
               warmup_epochs=20.0, standardise=False)
  assert ENTRIES['dkd'] == usual
  assert ENTRIES['dkd_std'] == {**usual, 'alpha': 9.0, 'beta': 72.0, 'temperature': 2.0,
                                'standardise': True}
