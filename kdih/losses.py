"""Losses, per example and unreduced. z are logits [batch, classes], y labels int [batch]."""
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import optax


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


def kd_loss(
    student: jax.Array, teacher: jax.Array, labels: jax.Array, alpha: float, temperature: float
) -> jax.Array:
  """(1 - alpha) CE(z, y) + alpha T^2 KL(p_T(t) || p_T(z)), [batch] (DIH, section 3)."""
  return ((1 - alpha) * cross_entropy(student, labels)
          + alpha * tempered_kl(student, teacher, temperature))


def cohort_loss(
    student: jax.Array,
    members: Mapping[str, jax.Array],
    labels: jax.Array,
    alphas: Sequence[float],
    temperatures: Sequence[float],
    *,
    reduction: str = 'sum',
    cross_entropy_per: str = 'per_branch',
) -> jax.Array:
  """The DIH loss, [batch]: one branch of `kd_loss` for every member of the cohort.

  L = sum_b [(1 - alpha_b) CE(z, y) + alpha_b T_b^2 KL(p_T(t_b) || p_T(z))] (DIH, section 3).

  Args:
    student: z.
    members: t_b, by name.
    labels: y.
    alphas: alpha_b in the order of `members`; a branch of 0 is left out, with its CE.
    temperatures: T_b, likewise.
    reduction: 'sum' as in the paper, or 'mean' over the branches that are left.
    cross_entropy_per: 'per_branch' as in the formula, or 'once' as in the paper's figure: one
      CE, weighted by the mean of 1 - alpha_b.
  """
  branches = [(a, t, logits) for a, t, logits
              in zip(alphas, temperatures, members.values(), strict=True) if a > 0]
  share = 1 / len(branches) if reduction == 'mean' else 1.0
  taught = sum(a * tempered_kl(student, logits, t) for a, t, logits in branches)
  label_weight = sum(1 - a for a, _, _ in branches)
  label_share = 1 / len(branches) if cross_entropy_per == 'once' else share
  return share * jnp.asarray(taught) + label_share * label_weight * cross_entropy(student, labels)
