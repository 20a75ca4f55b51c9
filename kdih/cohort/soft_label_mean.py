"""How the cohort's soft labels are averaged over its members."""
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from kdih.distillation import losses

_TINY = 1e-30  # So that the division by the sum of shares is finite.


def mean_soft_label(
    members: Mapping[str, jax.Array], alphas: Sequence[float], temperature: float,
    weights: jax.Array | None = None, view: losses.View = losses.as_they_are,
) -> losses.SoftLabel:
  """The soft label that teaches what the members do, by `losses.soft_label_loss`.

  mean = sum_b c_b p_b / C and spread = sum_b c_b KL(p_b || mean) / C, with p_b = p_T(t_b),
  c_b = alpha_b w_b and C their sum. The arguments are those of `losses.cohort_loss`.
  """
  heard = [(view(z), share) for z, share in zip(
      members.values(), losses.member_shares(alphas, weights), strict=True) if share is not None]
  shares = jnp.stack([share for _, share in heard])
  shares = shares / jnp.maximum(shares.sum(), _TINY)
  log_labels = jax.nn.log_softmax(jnp.stack([z for z, _ in heard]) / temperature)
  parts = shares[:, None, None] * jnp.exp(log_labels)
  mean = parts.sum(0)
  spread = losses.expectation(parts, log_labels - jnp.log(mean)[None]).sum(0)
  return losses.SoftLabel(mean, spread)


def mean_logits(members: dict[str, jax.Array]) -> jax.Array:
  """log of the members' mean soft label at temperature 1, [batch, num_classes]."""
  log_probabilities = jnp.stack([jax.nn.log_softmax(z) for z in members.values()])
  return jax.nn.logsumexp(log_probabilities, axis=0) - jnp.log(float(len(members)))
