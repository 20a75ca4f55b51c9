"""Losses per example, unreduced. z are logits [batch, classes], y are labels int [batch].

A logit of -inf gives its class the probability 0, and 0 log 0 counts as 0: the loss of a teacher
with such logits is the limit of the loss as these logits, all equal, go to -inf. The loss is
infinite where the student gives the probability 0 to a class to which the teacher or the label
gives more; its gradient is then the limit of the gradients.
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from kdih.distillation.signal import SoftLabel

Transform = Callable[[jax.Array], jax.Array]

# Replaces -inf where means and deviations are computed, which have to stay finite in float32.
_LOWEST = -1e30


def identity(logits: jax.Array) -> jax.Array:
  """Returns the logits unchanged: the transform of methods that do not standardise."""
  return logits


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Returns CE(z, y), [batch], in nats."""
  return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


def expectation(probabilities: jax.Array, numbers: jax.Array) -> jax.Array:
  """Returns sum_c p_c n_c over the last axis, where 0 times an infinite number counts as 0.

  A probability below the smallest normal number counts as 0, because processors may flush it to 0.
  """
  none = probabilities < jnp.finfo(probabilities.dtype).tiny
  # The inner `where` keeps infinite numbers out of the gradient.
  return jnp.where(none, 0, probabilities * jnp.where(none, 0, numbers)).sum(-1)


def kl_divergence(log_teacher: jax.Array, log_student: jax.Array) -> jax.Array:
  """Returns KL(p || q) over the last axis, in nats, from log p and log q."""
  return expectation(jnp.exp(log_teacher), log_teacher - log_student)


def soft_cross_entropy(student: jax.Array, teacher: jax.Array, temperature: float) -> jax.Array:
  """Returns the cross-entropy H(p_T(teacher), p_T(student)), [batch], in nats.

  p_T(z) = softmax(z / T).
  """
  return expectation(jax.nn.softmax(teacher / temperature),
                     -jax.nn.log_softmax(student / temperature))


def tempered_kl(student: jax.Array, teacher: jax.Array, temperature: float) -> jax.Array:
  """Returns T^2 KL(p_T(teacher) || p_T(student)), [batch], with p_T(z) = softmax(z / T).

  Source: Hinton et al., 2015 (arXiv 1503.02531), section 2. The factor T^2 keeps the scale of the
  gradient about the same at every temperature.
  """
  return temperature**2 * kl_divergence(
      jax.nn.log_softmax(teacher / temperature), jax.nn.log_softmax(student / temperature))


def standardise(logits: jax.Array) -> jax.Array:
  """Returns (z - mean(z)) / (1e-7 + std(z)) of each row, [batch, classes].

  The standard deviation divides by classes - 1, as PyTorch's does. Equal logits, which a fresh
  classifier may return, and the logit of a single class become 0, with the gradient 0.

  Source: Sun et al., 2024 (arXiv 2403.01427), whose code adds the 1e-7.
  """
  logits = jnp.maximum(logits, _LOWEST)
  highest, lowest = (jax.lax.stop_gradient(bound(logits, axis=-1, keepdims=True))
                     for bound in (jnp.max, jnp.min))
  span = highest - lowest
  apart = ~(span < jnp.finfo(span.dtype).tiny)  # Negated, so that a NaN stays a NaN.
  # The result does not depend on the scale; in [-1, 0] logits of any size can be squared.
  scaled = (logits - highest) / jnp.where(apart, span, 1)
  centred = scaled - scaled.mean(-1, keepdims=True)
  variance = (centred * centred).sum(-1, keepdims=True) / max(logits.shape[-1] - 1, 1)
  deviation = jnp.sqrt(jnp.where(apart, variance, 1))  # The square root has no gradient at 0.
  return jnp.where(apart, centred / (1e-7 / jnp.where(apart, span, 1) + deviation), 0)


def kd_terms(
    student: jax.Array, teacher: jax.Array, labels: jax.Array, alpha: float, temperature: float,
    gain: float = 1.0, transform: Transform = identity,
) -> dict[str, jax.Array]:
  """Returns the two terms of knowledge distillation, [batch] each.

      {'ce': (1 - alpha) CE(z, y), 'kl': alpha gain T^2 KL(p_T(t) || p_T(z))}

  Their sum with gain = 1 is the loss of KD in the DIH paper (arXiv 2103.00497, section 3).

  Args:
    student: z, [batch, classes].
    teacher: t, [batch, classes].
    labels: y, int [batch].
    alpha: weight of the teacher, in [0, 1].
    temperature: T.
    gain: another factor of the KL term.
    transform: applied to both logits before the KL term, such as `standardise`.
  """
  return {'ce': (1 - alpha) * cross_entropy(student, labels),
          'kl': alpha * gain * tempered_kl(transform(student), transform(teacher), temperature)}


def soft_label_kl(student: jax.Array, label: SoftLabel, temperature: float) -> jax.Array:
  """Returns T^2 sum_b c_b KL(p_b || p_T(z)) / C, [batch], for members that share a temperature T.

  With C = sum_b c_b, the mean soft label m = sum_b c_b p_b / C and q = p_T(z),

      sum_b c_b KL(p_b || q) / C = KL(m || q) + sum_b c_b KL(p_b || m) / C

  One softmax of the student and one KL therefore serve the whole cohort. The last term, the
  spread, does not depend on the student: it adds to the value and not to the gradient.

  Args:
    student: z, [batch, classes].
    label: m and the spread, from `kdih.cohort.soft_label_mean.mean_soft_label`.
    temperature: T.
  """
  log_student = jax.nn.log_softmax(student / temperature)
  kl = expectation(label.mean, jnp.log(label.mean) - log_student)
  return temperature**2 * (kl + label.spread)
