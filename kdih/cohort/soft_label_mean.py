"""How the cohort's soft labels are averaged over its members."""
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from kdih.distillation import losses
from kdih.distillation.signal import SoftLabel

_TINY = 1e-30  # So that the division by the sum of shares is finite.


def mean_soft_label(
    members: jax.Array, shares: Sequence[jax.Array | float], temperature: float
) -> SoftLabel:
  """Returns the soft label that teaches what the members do, by `losses.soft_label_kl`.

  mean = sum_b c_b p_b / C and spread = sum_b c_b KL(p_b || mean) / C, with p_b = p_T(t_b) and
  C = sum_b c_b.

  Args:
    members: t_b, [batch, members, classes].
    shares: c_b, one for each member.
    temperature: T.
  """
  c = jnp.stack([jnp.asarray(share, jnp.float32) for share in shares])
  c = c / jnp.maximum(c.sum(), _TINY)
  log_p = jax.nn.log_softmax(members / temperature)
  parts = c[None, :, None] * jnp.exp(log_p)
  mean = parts.sum(1)
  spread = losses.expectation(parts, log_p - jnp.log(mean)[:, None]).sum(-1)
  return SoftLabel(mean, spread)


def mean_logits(members: dict[str, jax.Array]) -> jax.Array:
  """Returns log of the members' mean soft label at temperature 1, [batch, num_classes]."""
  log_probabilities = jnp.stack([jax.nn.log_softmax(z) for z in members.values()])
  return jax.nn.logsumexp(log_probabilities, axis=0) - jnp.log(float(len(members)))
