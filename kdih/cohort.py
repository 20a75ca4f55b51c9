"""Heads on the teacher's taps, and the cohort that they form with the teacher's classifier."""
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdih import taps as taps_lib
from kdih.models import layers

FINAL = 'final'  # The teacher's own classifier, as a member of the cohort.
MEAN = 'mean'  # The mean of the members' soft labels, as a classifier.


def param_name(tap: str) -> str:
  """The key of a tap's head among the parameters of `Heads`; '/' would be a level of them."""
  return tap.replace('/', '.')


class Heads(nn.Module):
  """One classifier per tap (PAPER section 2): feature to [batch, num_classes] logits.

  Attributes:
    num_classes: number of classes.
    kind: 'flatten' feeds all of the feature to the Dense, 'gap' its mean over positions.
  """

  num_classes: int
  kind: str = 'flatten'

  @nn.compact
  def __call__(self, features: taps_lib.Features) -> dict[str, jax.Array]:
    """Logits [batch, num_classes] of every head, by tap."""
    return {tap: self._head(tap, self._pool(feature)) for tap, feature in features.items()}

  def _head(self, tap: str, inputs: jax.Array) -> jax.Array:
    return layers.dense(inputs.shape[-1], self.num_classes, name=param_name(tap))(inputs)

  def _pool(self, feature: jax.Array) -> jax.Array:
    feature = feature.astype(jnp.float32)
    if self.kind == 'flatten':
      return feature.reshape(feature.shape[0], -1)
    return feature.mean(axis=range(1, feature.ndim - 1))


def cohort_logits(
    teacher: nn.Module, heads: nn.Module, frozen: dict, images: jax.Array, taps: Sequence[str]
) -> dict[str, jax.Array]:
  """Logits [batch, num_classes] of every member: heads in tap order, then `final`.

  One forward pass of the teacher, in evaluation mode; no gradient leaves it.

  Args:
    teacher: the backbone.
    heads: the `Heads` mounted on it.
    frozen: {'teacher': variables, 'heads': variables}.
    images: float [batch, height, width, channels].
    taps: the taps that carry a head.
  """
  final, features = taps_lib.apply_with_taps(teacher, frozen['teacher'], images, taps)
  logits: Any = heads.apply(frozen['heads'], features) if taps else {}
  members = {**{tap: logits[tap] for tap in taps}, FINAL: final}
  # One by one: a dict that goes through jax as a whole comes back with its keys sorted.
  return {name: jax.lax.stop_gradient(z) for name, z in members.items()}


def mean_logits(members: dict[str, jax.Array]) -> jax.Array:
  """log of the members' mean soft label at temperature 1, [batch, num_classes]."""
  log_probabilities = jnp.stack([jax.nn.log_softmax(z) for z in members.values()])
  return jax.nn.logsumexp(log_probabilities, axis=0) - jnp.log(float(len(members)))
