"""The classifier heads on the teacher's taps: their linen modules."""
from collections.abc import Iterable

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdih import errors
from kdih.cohort.members import FINAL, MEAN
from kdih.models import layers, taps

# Names that a tap with a head cannot have, and the reasons.
_RESERVED = {
    FINAL: "is the name of the teacher's own classifier",
    MEAN: "is the name of the members' mean",
    'count': 'is the name of the number of images in what is measured',
    'params': "is the name of Flax's collection of parameters",
}


def param_name(tap: str) -> str:
  """Returns the name of a tap's head among the parameters; '/' would separate two names."""
  return tap.replace('/', '.')


def check_names(names: Iterable[str], setting: str) -> None:
  """Raises ConfigError if a tap cannot carry a head because of its name.

  Args:
    names: of all taps that carry a head.
    setting: the config field that names the taps, for the error.
  """
  by_param: dict[str, str] = {}
  for tap in names:
    reason = _RESERVED.get(tap)
    if not tap.isprintable() or param_name(tap).strip('. ') == '':
      reason = 'cannot be the name of a head, which has a letter and no control codes'
    if not reason and param_name(tap) in by_param:
      reason = f'would share the parameters of {by_param[param_name(tap)]!r}'
    if reason:
      raise errors.ConfigError(
          f'{setting}: the tap {tap!r} {reason}; sow it under another name than the reserved '
          f'{", ".join(sorted(_RESERVED))}, or leave it out of the taps to use')
    by_param[param_name(tap)] = tap


class Heads(nn.Module):
  """One classifier per tap (PAPER section 2): feature to [batch, num_classes] logits.

  Attributes:
    num_classes: number of classes.
    kind: what the dense layer reads: 'flatten' the whole feature, 'gap' its mean over positions.
  """

  num_classes: int
  kind: str = 'flatten'

  @nn.compact
  def __call__(self, features: taps.Features) -> dict[str, jax.Array]:
    """Returns the logits [batch, num_classes] of every head, by tap."""
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
