"""The classifier heads on the teacher's taps: their linen modules."""
import flax.linen as nn
import jax
import jax.numpy as jnp

from kdih.models import layers, taps


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
  def __call__(self, features: taps.Features) -> dict[str, jax.Array]:
    """Logits [batch, num_classes] of every head, by tap."""
    return {tap: self._head(tap, self._pool(feature)) for tap, feature in features.items()}

  def _head(self, tap: str, inputs: jax.Array) -> jax.Array:
    return layers.dense(inputs.shape[-1], self.num_classes, name=param_name(tap))(inputs)

  def _pool(self, feature: jax.Array) -> jax.Array:
    feature = feature.astype(jnp.float32)
    if self.kind == 'flatten':
      return feature.reshape(feature.shape[0], -1)
    return feature.mean(axis=range(1, feature.ndim - 1))
