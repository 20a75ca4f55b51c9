"""The loss of DIH against float64 numpy, worked from the formulas of its paper."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdih.config import fields
from kdih.distillation.method import Context
from kdih.distillation.signal import TeacherSignal
from kdih.models.taps import Output
from tests.helpers import lessons

DIH = fields.base().methods.dih.to_dict()
RNG = np.random.default_rng(7)
STUDENT = RNG.normal(scale=2, size=(lessons.BATCH, lessons.CLASSES))
MEMBERS = [RNG.normal(scale=3, size=STUDENT.shape) for _ in ('stage1', 'stage2', 'final')]
ALPHAS, TEMPERATURES = (0.1, 0.7, 0.4), (5.0, 1.0, 2.5)
LN3 = 1.09861228867


def soft(logits, temperature=1.0):
  powers = np.exp(logits / temperature)
  return powers / powers.sum(-1, keepdims=True)


def ce(z):
  return -np.log(soft(z)[np.arange(len(z)), lessons.LABELS])


def kl(teacher, student, temperature):
  p, q = soft(teacher, temperature), soft(student, temperature)
  return (p * np.log(p / q)).sum(-1)


def kd(z, teacher, alpha, temperature):
  return (1 - alpha) * ce(z) + alpha * temperature**2 * kl(teacher, z, temperature)


def formula(z, alphas=ALPHAS, temperatures=TEMPERATURES):
  members = zip(alphas, temperatures, MEMBERS, strict=True)
  return sum(kd(z, t_b, a, t) for a, t, t_b in members if a > 0)


def terms(z, alphas=ALPHAS, temperatures=TEMPERATURES, mean_soft_label=True, **options):
  """'ce' and 'kl', [batch]."""
  method = lessons.make(DIH, Context(num_members=len(MEMBERS), mean_soft_label=mean_soft_label),
                        alpha=alphas, temperature=temperatures, **options)
  members = jnp.stack([lessons.single(t) for t in MEMBERS], axis=1)
  return method.apply({}, lessons.lesson(
      student=Output(lessons.single(z), {}), teacher=TeacherSignal(members=members)))


def loss(z, *args, **options):
  return lessons.total(terms(z, *args, **options))


# Worked by hand: softmax(2 [ln 3, 0] / 2) is (3/4, 1/4); 4 KL((3/4, 1/4) || (1/2, 1/2)) is
# 0.52324814376.
@pytest.mark.parametrize('mean_soft_label', [True, False])
@pytest.mark.parametrize('options, expected', [
    ({}, 1.35231455383),  # 2 (0.9 ln 2 + 0.1 * 0.52324814376)
    ({'reduction': 'mean'}, 0.67615727692),
    ({'cross_entropy': 'once'}, 0.72848209125),  # 0.9 ln 2 + 2 * 0.1 * 0.52324814376
    ({'cross_entropy': 'once', 'reduction': 'mean'}, 0.67615727692),
])
def test_the_loss_of_two_equal_members_worked_by_hand(options, expected, mean_soft_label):
  method = lessons.make(DIH, Context(num_members=2, mean_soft_label=mean_soft_label),
                        temperature=2.0, **options)
  lesson = dataclasses.replace(
      lessons.lesson(student=Output(jnp.zeros((1, 2)), {}), teacher=TeacherSignal(
          members=lessons.single([[[2 * LN3, 0]] * 2]))), labels=jnp.array([0]))
  np.testing.assert_allclose(
      lessons.total(method.apply({}, lesson)), [expected], rtol=1e-6)


def test_it_sums_the_kd_of_each_member_with_its_own_alpha_and_temperature():
  np.testing.assert_allclose(loss(STUDENT), formula(STUDENT), rtol=1e-4)


@pytest.mark.parametrize('mean_soft_label', [True, False])
def test_it_is_k_plus_1_cross_entropies_and_the_sum_of_divergences(mean_soft_label):
  found = terms(STUDENT, 0.1, 5.0, mean_soft_label)
  assert list(found) == ['ce', 'kl']
  np.testing.assert_allclose(found['ce'], 3 * 0.9 * ce(STUDENT), rtol=1e-4)
  np.testing.assert_allclose(
      found['kl'], 0.1 * 25 * sum(kl(t, STUDENT, 5.0) for t in MEMBERS), rtol=1e-4)


def test_alphas_and_temperatures_follow_the_order_of_the_members():
  swapped = loss(STUDENT, ALPHAS[::-1], TEMPERATURES[::-1])
  expected = formula(STUDENT, ALPHAS[::-1], TEMPERATURES[::-1])
  np.testing.assert_allclose(swapped, expected, rtol=1e-4)
  assert not np.allclose(swapped, loss(STUDENT), rtol=1e-2)


@pytest.mark.parametrize('alphas, left', [((0.1, 0.7, 0.4), 3), ((0.1, 0.0, 0.4), 2)])
def test_mean_divides_by_the_members_that_teach(alphas, left):
  found = loss(STUDENT, alphas, reduction='mean')
  np.testing.assert_allclose(found, formula(STUDENT, alphas) / left, rtol=1e-4)


@pytest.mark.parametrize('temperatures', [TEMPERATURES, (5.0,) * 3])
def test_a_member_of_alpha_0_is_left_out_with_its_cross_entropy(temperatures):
  expected = (kd(STUDENT, MEMBERS[0], 0.1, temperatures[0])
              + kd(STUDENT, MEMBERS[2], 0.4, temperatures[2]))
  np.testing.assert_allclose(loss(STUDENT, (0.1, 0.0, 0.4), temperatures), expected, rtol=1e-4)


def test_a_member_of_alpha_1_teaches_without_labels():
  np.testing.assert_allclose(
      loss(STUDENT, (1.0, 0.0, 0.0)), 25 * kl(MEMBERS[0], STUDENT, 5.0), rtol=1e-4)


def test_the_teacher_in_the_place_of_every_head_is_the_last_member():
  expected = sum(kd(STUDENT, MEMBERS[-1], a, t)
                 for a, t in zip(ALPHAS, TEMPERATURES, strict=True))
  np.testing.assert_allclose(loss(STUDENT, members='teacher'), expected, rtol=1e-4)


@pytest.mark.parametrize('alphas', [(0.1, 0.7, 0.4), (0.1, 0.0, 0.4)])
def test_cross_entropy_once_is_weighted_by_the_mean_of_1_minus_alpha(alphas):
  used = [a for a in alphas if a]
  kls = sum(a * t**2 * kl(t_b, STUDENT, t)
            for a, t, t_b in zip(alphas, TEMPERATURES, MEMBERS, strict=True))
  expected = kls + (1 - np.mean(used)) * ce(STUDENT)
  np.testing.assert_allclose(
      loss(STUDENT, alphas, cross_entropy='once'), expected, rtol=1e-4)


@pytest.mark.parametrize('temperatures', [TEMPERATURES, (5.0,) * 3])
@pytest.mark.parametrize('alphas', [(0.1, 0.7, 0.4), (0.0, 0.7, 0.4)])
def test_its_gradient_matches_finite_differences(alphas, temperatures):
  found = jax.grad(lambda z: loss(z, alphas, temperatures).sum())(lessons.single(STUDENT))
  expected = lessons.numerical_gradient(
      lambda z: formula(z, alphas, temperatures).sum(), STUDENT)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize('temperatures', [TEMPERATURES, (5.0,) * 3])
@pytest.mark.parametrize('scale', [1e4, 1e5])
def test_extreme_logits_give_a_finite_loss_and_gradient(scale, temperatures):
  z = lessons.single(np.sign(STUDENT))
  value, gradient = jax.value_and_grad(
      lambda z: loss(scale * z, ALPHAS, temperatures).sum())(z)
  assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize('mean_soft_label', [True, False])
def test_the_teacher_in_every_place_is_kd_of_as_large_a_loss(mean_soft_label):
  """`dih_teacher` and `kd_matched` are 3.6 CE + 10 KL of a cohort of four: loss and gradient."""
  presets, teacher = fields.base().methods.to_dict(), lessons.single(MEMBERS[-1])
  signal = TeacherSignal(
      logits=teacher, members=jnp.stack([*map(lessons.single, MEMBERS), teacher], axis=1))

  def value_and_grad(name):
    method = lessons.make(
        presets[name], Context(num_members=4, mean_soft_label=mean_soft_label))
    return jax.value_and_grad(lambda z: lessons.total(method.apply({}, lessons.lesson(
        student=Output(z, {}), teacher=signal))).sum())(lessons.single(STUDENT))

  (one, gradient), (other, same), (dih, heads) = map(
      value_and_grad, ('dih_teacher', 'kd_matched', 'dih'))
  expected = (3.6 * ce(STUDENT) + 10 * kl(MEMBERS[-1], STUDENT, 5.0)).sum()
  np.testing.assert_allclose([one, other], expected, rtol=1e-4)
  np.testing.assert_allclose(one, other, rtol=1e-5)
  np.testing.assert_allclose(gradient, same, rtol=1e-4, atol=1e-6)
  assert abs(dih - one) > 1e-2 * one and abs(heads - gradient).max() > 1e-2
