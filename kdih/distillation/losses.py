"""Losses, per example and unreduced. z are logits [batch, classes], y labels int [batch].

A logit of -inf gives its class the probability 0, and 0 log 0 is 0: such a teacher is the limit of
one whose logit falls without end, and several fall together. A student that gives the probability
0 to what its teacher or the label does not has an infinite loss, and its gradient's limit.
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from kdih.distillation.signal import SoftLabel

View = Callable[[jax.Array], jax.Array]

_LOWEST = -1e30  # In a mean and a deviation, as good as a logit of -inf, or of float32's least.


def as_they_are(logits: jax.Array) -> jax.Array:
  """The view of logits that changes nothing."""
  return logits


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """CE(z, y), [batch], in nats."""
  return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


def expectation(probabilities: jax.Array, numbers: jax.Array) -> jax.Array:
  """Returns sum_c p_c n_c over the last axis, where 0 times an infinite number is 0.

  A probability below the least normal number counts as 0, as processors may round it to that.
  """
  none = probabilities < jnp.finfo(probabilities.dtype).tiny
  # The inner `where` keeps what is infinite out of the gradient.
  return jnp.where(none, 0, probabilities * jnp.where(none, 0, numbers)).sum(-1)


def kl_divergence(log_teacher: jax.Array, log_student: jax.Array) -> jax.Array:
  """Returns KL(p || q) over the last axis, in nats, of log p and log q."""
  return expectation(jnp.exp(log_teacher), log_teacher - log_student)


def soft_cross_entropy(student: jax.Array, teacher: jax.Array, temperature: float) -> jax.Array:
  """Returns H(p_T(teacher), p_T(student)), [batch], in nats; `tempered_kl` says what p_T is."""
  return expectation(jax.nn.softmax(teacher / temperature),
                     -jax.nn.log_softmax(student / temperature))


def tempered_kl(student: jax.Array, teacher: jax.Array, temperature: float) -> jax.Array:
  """T^2 KL(p_T(teacher) || p_T(student)), [batch], with p_T(z) = softmax(z / T).

  Hinton et al., 2015 (arXiv 1503.02531); the factor T^2 keeps its gradient's scale.
  """
  return temperature**2 * kl_divergence(
      jax.nn.log_softmax(teacher / temperature), jax.nn.log_softmax(student / temperature))


def standardise(logits: jax.Array) -> jax.Array:
  """Every row less its mean, over its standard deviation (Sun et al., 2024, arXiv 2403.01427).

  (z - mean(z)) / (1e-7 + std(z)), [batch, classes], with PyTorch's std (over classes - 1). Of
  equal logits, which a fresh classifier may give, and of a single class it is 0, and so is its
  gradient.
  """
  logits = jnp.maximum(logits, _LOWEST)
  highest, lowest = (jax.lax.stop_gradient(bound(logits, axis=-1, keepdims=True))
                     for bound in (jnp.max, jnp.min))
  span = highest - lowest
  apart = ~(span < jnp.finfo(span.dtype).tiny)  # So that what is no number stays none.
  # In [-1, 0] instead, which changes nothing, logits of any size can be squared.
  scaled = (logits - highest) / jnp.where(apart, span, 1)
  centred = scaled - scaled.mean(-1, keepdims=True)
  variance = (centred * centred).sum(-1, keepdims=True) / max(logits.shape[-1] - 1, 1)
  deviation = jnp.sqrt(jnp.where(apart, variance, 1))  # The root has no gradient at 0.
  return jnp.where(apart, centred / (1e-7 / jnp.where(apart, span, 1) + deviation), 0)


def kd_terms(
    student: jax.Array, teacher: jax.Array, labels: jax.Array, alpha: float, temperature: float,
    gain: float = 1.0, view: View = as_they_are,
) -> dict[str, jax.Array]:
  """{'ce': (1 - alpha) CE(z, y), 'kl': alpha gain T^2 KL(p_T(t) || p_T(z))}, [batch] each.

  Their sum is the loss of knowledge distillation (DIH, section 3). `gain` is 1 there; `view` is
  what the KL sees of logits, such as `standardise`.
  """
  return {'ce': (1 - alpha) * cross_entropy(student, labels),
          'kl': alpha * gain * tempered_kl(view(student), view(teacher), temperature)}


def soft_label_kl(student: jax.Array, label: SoftLabel, temperature: float) -> jax.Array:
  """T^2 sum_b c_b KL(p_b || p_T(z)) / C, [batch], of members that share a temperature T.

  With C = sum_b c_b, their mean soft label m = sum_b c_b p_b / C and q = p_T(z),

      sum_b c_b KL(p_b || q) / C = KL(m || q) + sum_b c_b KL(p_b || m) / C

  so that one softmax of the student and one KL serve the whole cohort. The last term, the spread,
  does not depend on the student: it keeps the value, and the gradient is the same without.

  Args:
    student: z.
    label: m and the spread, from `kdih.cohort.soft_label_mean.mean_soft_label`.
    temperature: T.
  """
  log_student = jax.nn.log_softmax(student / temperature)
  kl = expectation(label.mean, jnp.log(label.mean) - log_student)
  return temperature**2 * (kl + label.spread)
