"""Losses, per example and unreduced. z are logits [batch, classes], y labels int [batch]."""
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from kdih.distillation.signal import SoftLabel

View = Callable[[jax.Array], jax.Array]


def as_they_are(logits: jax.Array) -> jax.Array:
  """The view of logits that changes nothing."""
  return logits


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """CE(z, y), [batch], in nats."""
  return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


def tempered_kl(student: jax.Array, teacher: jax.Array, temperature: float) -> jax.Array:
  """T^2 KL(p_T(teacher) || p_T(student)), [batch], with p_T(z) = softmax(z / T).

  Hinton et al., 2015 (arXiv 1503.02531); the factor T^2 keeps its gradient's scale.
  """
  kl = optax.losses.kl_divergence_with_log_targets(
      jax.nn.log_softmax(student / temperature), jax.nn.log_softmax(teacher / temperature))
  return kl * temperature**2


def standardise(logits: jax.Array) -> jax.Array:
  """Every row less its mean, over its standard deviation (Sun et al., 2024, arXiv 2403.01427).

  (z - mean(z)) / (1e-7 + std(z)), [batch, classes], with PyTorch's std (over classes - 1). Of
  equal logits, which a fresh classifier may give, it is 0, and so is its gradient.
  """
  centred = logits - logits.mean(-1, keepdims=True)
  variance = jnp.var(logits, axis=-1, keepdims=True, ddof=1)
  apart = variance > 0
  deviation = jnp.sqrt(jnp.where(apart, variance, 1))  # The root has no gradient at 0.
  return jnp.where(apart, centred / (1e-7 + deviation), 0)


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
  """T^2 sum_b c_b KL(p_b || p_T(z)) / sum_b c_b, [batch], of members that share a temperature.

  As sum_b c_b KL(p_b || q) = C [KL(mean || q) + spread], with C = sum_b c_b: one softmax of the
  student and one KL for the whole cohort, with the same value and gradient.

  Args:
    student: z.
    label: of the members' p_b, weighted by c_b; see `kdih.cohort.soft_label_mean`.
    temperature: T.
  """
  log_student = jax.nn.log_softmax(student / temperature)
  return temperature**2 * (optax.losses.kl_divergence(log_student, label.mean) + label.spread)
