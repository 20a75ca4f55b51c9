"""The losses against float64 numpy, worked from the formulas of the DIH paper."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdih.distillation import losses

BATCH, CLASSES = 4, 5
RNG = np.random.default_rng(7)
STUDENT = RNG.normal(scale=2, size=(BATCH, CLASSES))
MEMBERS = {name: RNG.normal(scale=3, size=(BATCH, CLASSES)) for name in ('stage1', 'b', 'final')}
LABELS = np.array([4, 0, 2, 2])
ALPHAS, TEMPERATURES = (0.1, 0.7, 0.4), (5.0, 1.0, 2.5)
LN2, LN3, LN4 = 0.69314718056, 1.09861228867, 1.38629436112


def soft(logits, temperature=1.0):
  powers = np.exp(logits / temperature)
  return powers / powers.sum(-1, keepdims=True)


def ce(z):
  return -np.log(soft(z)[np.arange(len(z)), LABELS[:len(z)]])


def kl(teacher, student, temperature):
  p, q = soft(teacher, temperature), soft(student, temperature)
  return (p * np.log(p / q)).sum(-1)


def branch(z, teacher, alpha, temperature):
  return (1 - alpha) * ce(z) + alpha * temperature**2 * kl(teacher, z, temperature)


def dih(z, alphas=ALPHAS, temperatures=TEMPERATURES):
  members = zip(alphas, temperatures, MEMBERS.values(), strict=True)
  return sum(branch(z, t_b, a, t) for a, t, t_b in members if a > 0)


def single(array):
  return jnp.asarray(array, jnp.float32)


def cohort_loss(z, alphas=ALPHAS, temperatures=TEMPERATURES, **options):
  members = {name: single(logits) for name, logits in MEMBERS.items()}
  return losses.cohort_loss(
      single(z), members, jnp.asarray(LABELS), alphas, temperatures, **options)


def numerical_gradient(function, z, step=1e-5):
  gradient = np.zeros_like(z)
  for position in np.ndindex(z.shape):
    shift = np.zeros_like(z)
    shift[position] = step
    gradient[position] = (function(z + shift).sum() - function(z - shift).sum()) / (2 * step)
  return gradient


def assert_gradient(ours, reference):
  actual = jax.grad(lambda z: ours(z).sum())(single(STUDENT))
  np.testing.assert_allclose(actual, numerical_gradient(reference, STUDENT), rtol=1e-4, atol=2e-6)


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


@pytest.mark.parametrize('options, expected', [
    ({}, 1.35231455383),  # 2 (0.9 ln 2 + 0.1 * 0.52324814376)
    ({'reduction': 'mean'}, 0.67615727692),
    ({'cross_entropy_per': 'once'}, 0.72848209125),  # 0.9 ln 2 + 2 * 0.1 * 0.52324814376
    ({'cross_entropy_per': 'once', 'reduction': 'mean'}, 0.67615727692),
])
def test_cohort_loss_of_two_equal_members_worked_by_hand(options, expected):
  members = dict.fromkeys(('stage1', 'final'), single([[2 * LN3, 0]]))
  loss = losses.cohort_loss(
      single([[0, 0]]), members, jnp.array([0]), (0.1, 0.1), (2.0, 2.0), **options)
  np.testing.assert_allclose(loss, [expected], rtol=1e-6)


def test_cross_entropy_is_the_formula_per_example():
  np.testing.assert_allclose(
      losses.cross_entropy(single(STUDENT), jnp.asarray(LABELS)), ce(STUDENT), rtol=1e-5)


@pytest.mark.parametrize('temperature', [0.5, 1.0, 5.0])
def test_tempered_kl_is_the_formula_per_example(temperature):
  teacher = MEMBERS['final']
  loss = losses.tempered_kl(single(STUDENT), single(teacher), temperature)
  np.testing.assert_allclose(loss, temperature**2 * kl(teacher, STUDENT, temperature), rtol=1e-4)


@pytest.mark.parametrize('alpha, temperature', [(0.1, 5.0), (0.9, 4.0), (0.0, 5.0), (1.0, 1.0)])
def test_kd_loss_is_the_formula_per_example(alpha, temperature):
  teacher = MEMBERS['final']
  loss = losses.kd_loss(
      single(STUDENT), single(teacher), jnp.asarray(LABELS), alpha, temperature)
  np.testing.assert_allclose(loss, branch(STUDENT, teacher, alpha, temperature), rtol=1e-4)


def test_cohort_loss_sums_a_branch_per_member_with_its_own_alpha_and_temperature():
  np.testing.assert_allclose(cohort_loss(STUDENT), dih(STUDENT), rtol=1e-4)


def test_cohort_loss_is_k_plus_1_cross_entropies_and_the_sum_of_divergences():
  kls = sum(kl(t, STUDENT, 5.0) for t in MEMBERS.values())
  expected = 3 * 0.9 * ce(STUDENT) + 0.1 * 25 * kls
  np.testing.assert_allclose(cohort_loss(STUDENT, (0.1,) * 3, (5.0,) * 3), expected, rtol=1e-4)


def test_alphas_and_temperatures_follow_the_order_of_the_members():
  swapped = cohort_loss(STUDENT, ALPHAS[::-1], TEMPERATURES[::-1])
  expected = dih(STUDENT, ALPHAS[::-1], TEMPERATURES[::-1])
  np.testing.assert_allclose(swapped, expected, rtol=1e-4)
  assert not np.allclose(swapped, cohort_loss(STUDENT), rtol=1e-2)


@pytest.mark.parametrize('alphas, left', [((0.1, 0.7, 0.4), 3), ((0.1, 0.0, 0.4), 2)])
def test_mean_divides_by_the_branches_that_are_left(alphas, left):
  loss = cohort_loss(STUDENT, alphas, reduction='mean')
  np.testing.assert_allclose(loss, dih(STUDENT, alphas) / left, rtol=1e-4)


def test_a_branch_of_alpha_0_is_left_out_with_its_cross_entropy():
  expected = (branch(STUDENT, MEMBERS['stage1'], 0.1, 5.0)
              + branch(STUDENT, MEMBERS['final'], 0.4, 2.5))
  np.testing.assert_allclose(cohort_loss(STUDENT, (0.1, 0.0, 0.4)), expected, rtol=1e-4)


def test_a_branch_of_alpha_1_teaches_without_labels():
  loss = cohort_loss(STUDENT, (1.0, 0.0, 0.0))
  np.testing.assert_allclose(loss, 25 * kl(MEMBERS['stage1'], STUDENT, 5.0), rtol=1e-4)


@pytest.mark.parametrize('alphas', [(0.1, 0.7, 0.4), (0.1, 0.0, 0.4)])
def test_cross_entropy_once_is_weighted_by_the_mean_of_1_minus_alpha(alphas):
  used = [a for a in alphas if a]
  kls = sum(a * t**2 * kl(t_b, STUDENT, t)
            for a, t, t_b in zip(alphas, TEMPERATURES, MEMBERS.values(), strict=True))
  expected = kls + (1 - np.mean(used)) * ce(STUDENT)
  loss = cohort_loss(STUDENT, alphas, cross_entropy_per='once')
  np.testing.assert_allclose(loss, expected, rtol=1e-4)


@pytest.mark.parametrize('alphas, temperatures', [((0.1, 0.2), (5.0,) * 3), ((0.1,) * 3, (5.0,))])
def test_a_wrong_count_of_alphas_or_temperatures_is_refused(alphas, temperatures):
  with pytest.raises(ValueError, match='zip'):
    cohort_loss(STUDENT, alphas, temperatures)


def test_gradient_of_cross_entropy_matches_finite_differences():
  assert_gradient(lambda z: losses.cross_entropy(z, jnp.asarray(LABELS)), ce)


@pytest.mark.parametrize('alpha, temperature', [(0.1, 5.0), (0.9, 1.0)])
def test_gradient_of_kd_loss_matches_finite_differences(alpha, temperature):
  teacher = MEMBERS['b']
  assert_gradient(
      lambda z: losses.kd_loss(z, single(teacher), jnp.asarray(LABELS), alpha, temperature),
      lambda z: branch(z, teacher, alpha, temperature))


@pytest.mark.parametrize('alphas', [(0.1, 0.7, 0.4), (0.0, 0.7, 0.4)])
def test_gradient_of_the_cohort_loss_matches_finite_differences(alphas):
  assert_gradient(lambda z: cohort_loss(z, alphas), lambda z: dih(z, alphas))


def test_the_mean_soft_label_has_the_gradient_of_the_whole_cohort():
  temperature, weights = 5.0, np.array(ALPHAS)
  labels = [soft(t, temperature) for t in MEMBERS.values()]
  mean = sum(w * p for w, p in zip(weights, labels, strict=True)) / weights.sum()
  one = single(temperature * np.log(mean))

  def taught(z):
    return sum(a * losses.tempered_kl(z, single(t), temperature).sum()
               for a, t in zip(ALPHAS, MEMBERS.values(), strict=True))

  of_mean = jax.grad(lambda z: losses.tempered_kl(z, one, temperature).sum())(single(STUDENT))
  np.testing.assert_allclose(weights.sum() * of_mean, jax.grad(taught)(single(STUDENT)), atol=1e-5)


@pytest.mark.parametrize('scale', [1e4, 1e5])
def test_extreme_logits_give_a_finite_loss_and_gradient(scale):
  z = scale * np.sign(STUDENT)
  assert np.isfinite(np.asarray(cohort_loss(z))).all()
  assert np.isfinite(np.asarray(jax.grad(lambda z: cohort_loss(scale * z).sum())(single(z)))).all()


def test_extreme_logits_give_the_right_loss():
  loss = losses.cross_entropy(single([[1e4, 0.0]]), jnp.array([1]))
  divergence = losses.tempered_kl(single([[1e4, 0.0]]), single([[0.0, 1e4]]), 1.0)
  np.testing.assert_allclose([loss[0], divergence[0]], 1e4)
