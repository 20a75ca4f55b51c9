"""The losses against float64 numpy, worked from their formulas; DIH itself is in test_dih."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdih.distillation import losses
from kdih.distillation.signal import SoftLabel
from tests.helpers import lessons

BATCH, CLASSES = 4, 5
RNG = np.random.default_rng(7)
STUDENT = RNG.normal(scale=2, size=(BATCH, CLASSES))
MEMBERS = {name: RNG.normal(scale=3, size=(BATCH, CLASSES)) for name in ('stage1', 'b', 'final')}
LABELS = np.array([4, 0, 2, 2])
SHARES = (0.1, 0.7, 0.4)
LN3, LN4 = 1.09861228867, 1.38629436112


def soft(logits, temperature=1.0):
  powers = np.exp(logits / temperature)
  return powers / powers.sum(-1, keepdims=True)


def ce(z):
  return -np.log(soft(z)[np.arange(len(z)), LABELS[:len(z)]])


def kl(teacher, student, temperature):
  p, q = soft(teacher, temperature), soft(student, temperature)
  return (p * np.log(p / q)).sum(-1)


def single(array):
  return jnp.asarray(array, jnp.float32)


def assert_gradient(ours, reference):
  actual = jax.grad(lambda z: ours(z).sum())(single(STUDENT))
  expected = lessons.numerical_gradient(lambda z: reference(z).sum(), STUDENT)
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=2e-6)


# Worked by hand: softmax([0, ln 3]) is (1/4, 3/4), and so is that of 2 [0, ln 3] at T = 2.
@pytest.mark.parametrize('logits, label, expected', [
    ([0, LN3], 1, LN4 - LN3), ([0, LN3], 0, LN4), ([3, 3, 3], 2, LN3)])
def test_cross_entropy_worked_by_hand(logits, label, expected):
  loss = losses.cross_entropy(single([logits]), jnp.array([label]))
  np.testing.assert_allclose(loss, [expected], rtol=1e-6)


@pytest.mark.parametrize('student, teacher, expected', [
    ([0, 0], [2 * LN3, 0], 4 * 0.13081203594),  # 3/4 ln 3/2 + 1/4 ln 1/2
    ([2 * LN3, 0], [0, 0], 4 * 0.14384103622),  # 1/2 ln 2/3 + 1/2 ln 2: KL is not symmetric.
    ([2 * LN3, 0], [2 * LN3 + 7, 7], 0),
])
def test_tempered_kl_worked_by_hand(student, teacher, expected):
  loss = losses.tempered_kl(single([student]), single([teacher]), 2.0)
  np.testing.assert_allclose(loss, [expected], rtol=1e-5, atol=1e-6)


def test_cross_entropy_is_the_formula_per_example():
  np.testing.assert_allclose(
      losses.cross_entropy(single(STUDENT), jnp.asarray(LABELS)), ce(STUDENT), rtol=1e-5)


@pytest.mark.parametrize('temperature', [0.5, 1.0, 5.0])
def test_tempered_kl_is_the_formula_per_example(temperature):
  teacher = MEMBERS['final']
  loss = losses.tempered_kl(single(STUDENT), single(teacher), temperature)
  np.testing.assert_allclose(loss, temperature**2 * kl(teacher, STUDENT, temperature), rtol=1e-4)


@pytest.mark.parametrize('temperature', [1.0, 4.0])
def test_soft_cross_entropy_is_the_formula_per_example(temperature):
  teacher = MEMBERS['final']
  expected = -(soft(teacher, temperature) * np.log(soft(STUDENT, temperature))).sum(-1)
  found = losses.soft_cross_entropy(single(STUDENT), single(teacher), temperature)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_standardised_logits_have_the_mean_0_and_the_deviation_1_of_a_sample():
  expected = (STUDENT - STUDENT.mean(-1, keepdims=True)) / STUDENT.std(-1, keepdims=True, ddof=1)
  np.testing.assert_allclose(losses.standardise(single(STUDENT)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('alpha, temperature', [(0.1, 5.0), (0.9, 4.0), (0.0, 5.0), (1.0, 1.0)])
def test_the_terms_of_kd_are_those_of_the_formula_per_example(alpha, temperature):
  teacher = MEMBERS['final']
  terms = losses.kd_terms(
      single(STUDENT), single(teacher), jnp.asarray(LABELS), alpha, temperature)
  assert list(terms) == ['ce', 'kl']
  np.testing.assert_allclose(terms['ce'], (1 - alpha) * ce(STUDENT), rtol=1e-5)
  np.testing.assert_allclose(
      terms['kl'], alpha * temperature**2 * kl(teacher, STUDENT, temperature), rtol=1e-4)


def test_gain_and_view_are_of_the_divergence_alone():
  teacher, halved = MEMBERS['final'], lambda z: z / 2
  terms = losses.kd_terms(
      single(STUDENT), single(teacher), jnp.asarray(LABELS), 0.3, 4.0, 7.0, halved)
  np.testing.assert_allclose(terms['ce'], 0.7 * ce(STUDENT), rtol=1e-5)
  np.testing.assert_allclose(  # Half the logits at a temperature are those of twice that.
      terms['kl'], 0.3 * 7 * 16 * kl(teacher, STUDENT, 8.0), rtol=1e-4)


# Worked by hand: of members (3/4, 1/4) and (1/4, 3/4) with equal shares the mean is (1/2, 1/2),
# and the spread KL((3/4, 1/4) || (1/2, 1/2)) = 0.13081203594.
@pytest.mark.parametrize('student, expected', [
    ([0, 0], 4 * 0.13081203594), ([2 * LN3, 0], 4 * (0.14384103622 + 0.13081203594))])
def test_the_divergence_of_a_soft_label_worked_by_hand(student, expected):
  label = SoftLabel(single([[0.5, 0.5]]), single([0.13081203594]))
  loss = losses.soft_label_kl(single([student]), label, 2.0)
  np.testing.assert_allclose(loss, [expected], rtol=1e-5)


def soft_label(temperature):
  """That of all members, weighted by `SHARES`, from its definition."""
  p, total = [soft(t, temperature) for t in MEMBERS.values()], sum(SHARES)
  mean = sum(c * p_b for c, p_b in zip(SHARES, p, strict=True)) / total
  spread = sum(c * (p_b * np.log(p_b / mean)).sum(-1)
               for c, p_b in zip(SHARES, p, strict=True)) / total
  return SoftLabel(single(mean), single(spread))


@pytest.mark.parametrize('temperature', [1.0, 5.0])
def test_a_soft_label_has_value_and_gradient_of_the_members_divergences(temperature):
  def of_members(z):
    return sum(c * temperature**2 * kl(t, z, temperature)
               for c, t in zip(SHARES, MEMBERS.values(), strict=True)) / sum(SHARES)

  def of_label(z):
    return losses.soft_label_kl(z, soft_label(temperature), temperature)

  np.testing.assert_allclose(of_label(single(STUDENT)), of_members(STUDENT), rtol=1e-5)
  assert_gradient(of_label, of_members)


def test_gradient_of_cross_entropy_matches_finite_differences():
  assert_gradient(lambda z: losses.cross_entropy(z, jnp.asarray(LABELS)), ce)


@pytest.mark.parametrize('alpha, temperature', [(0.1, 5.0), (0.9, 1.0)])
def test_gradients_of_the_terms_of_kd_match_finite_differences(alpha, temperature):
  teacher = MEMBERS['b']

  def term(name):
    return lambda z: losses.kd_terms(
        z, single(teacher), jnp.asarray(LABELS), alpha, temperature)[name]

  assert_gradient(term('ce'), lambda z: (1 - alpha) * ce(z))
  assert_gradient(term('kl'), lambda z: alpha * temperature**2 * kl(teacher, z, temperature))


def test_extreme_logits_give_the_right_loss():
  loss = losses.cross_entropy(single([[1e4, 0.0]]), jnp.array([1]))
  divergence = losses.tempered_kl(single([[1e4, 0.0]]), single([[0.0, 1e4]]), 1.0)
  np.testing.assert_allclose([loss[0], divergence[0]], 1e4)
