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
    logits = {}
    for tap, feature in features.items():
      feature = feature.astype(jnp.float32)
      if self.kind == 'flatten':
        inputs = feature.reshape(feature.shape[0], -1)
      else:
        inputs = feature.mean(axis=range(1, feature.ndim - 1))
      head = layers.dense(inputs.shape[-1], self.num_classes, name=param_name(tap))
      logits[tap] = head(inputs)
    return logits
