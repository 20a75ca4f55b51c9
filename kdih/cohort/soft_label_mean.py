"""Means of the soft labels of the cohort's members."""
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from kdih.distillation import losses
from kdih.distillation.signal import SoftLabel

_TINY = 1e-30  # Keeps the division by the sum of weights finite.


def mean_soft_label(
    members: jax.Array, weights: Sequence[jax.Array | float], temperature: float
) -> SoftLabel:
  """Computes the one soft label whose `losses.soft_label_kl` is the weighted mean of the members'.

  mean = sum_b c_b p_b / C and spread = sum_b c_b KL(p_b || mean) / C, with p_b = p_T(t_b) and
  C = sum_b c_b.

  Args:
    members: t_b, [batch, members, classes].
    weights: c_b, one for each member.
    temperature: T.
  """
  c = jnp.stack([jnp.asarray(weight, jnp.float32) for weight in weights])
  c = c / jnp.maximum(c.sum(), _TINY)
  log_p = jax.nn.log_softmax(members / temperature)
  parts = c[None, :, None] * jnp.exp(log_p)
  mean = parts.sum(1)
  spread = losses.expectation(parts, log_p - jnp.log(mean)[:, None]).sum(-1)
  return SoftLabel(mean, spread)


def mean_logits(members: dict[str, jax.Array]) -> jax.Array:
  """Computes the log of the members' mean soft label at temperature 1, [batch, num_classes]."""
  log_probabilities = jnp.stack([jax.nn.log_softmax(z) for z in members.values()])
  return jax.nn.logsumexp(log_probabilities, axis=0) - jnp.log(float(len(members)))
