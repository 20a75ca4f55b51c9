"""The cohort's soft labels, averaged over its members."""
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from kdih.distillation import losses
from kdih.distillation.losses import TINY, SoftLabel, View


def mean_soft_label(
    members: Mapping[str, jax.Array], alphas: Sequence[float], temperature: float,
    weights: jax.Array | None = None, view: View = losses.as_they_are,
) -> SoftLabel:
  """The soft label that teaches what the members do; the arguments are those of `cohort_loss`."""
  heard = [(view(z), share) for z, share in zip(
      members.values(), losses.member_shares(alphas, weights), strict=True) if share is not None]
  shares = jnp.stack([share for _, share in heard])
  shares = shares / jnp.maximum(shares.sum(), TINY)
  log_labels = jax.nn.log_softmax(jnp.stack([z for z, _ in heard]) / temperature)
  mean = jnp.tensordot(shares, jnp.exp(log_labels), 1)
  divergences = jnp.exp(log_labels) * (log_labels - jnp.log(jnp.maximum(mean, TINY))[None])
  return SoftLabel(mean, jnp.tensordot(shares, divergences.sum(-1), 1))


def mean_logits(members: dict[str, jax.Array]) -> jax.Array:
  """log of the members' mean soft label at temperature 1, [batch, num_classes]."""
  log_probabilities = jnp.stack([jax.nn.log_softmax(z) for z in members.values()])
  return jax.nn.logsumexp(log_probabilities, axis=0) - jnp.log(float(len(members)))
