"""What training changes."""
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class TrainState:
  """The learning module's variables, with those of its optimizer.

  Attributes:
    step: int32 scalar, updates made so far.
    params: what is learnt.
    batch_stats: running statistics of its batch norms; {} without any.
    opt_state: of the optax transformation, for `params` alone.
  """

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: optax.OptState

  @property
  def variables(self) -> dict[str, Any]:
    """{'params', 'batch_stats'}; the latter only where there are any."""
    return pack(self.params, self.batch_stats)


def pack(params: Any, batch_stats: Any) -> dict[str, Any]:
  """Variables of a linen module; `batch_stats` only where there are any."""
  return {'params': params, **({'batch_stats': batch_stats} if batch_stats else {})}


def create(variables: dict[str, Any], tx: optax.GradientTransformation) -> TrainState:
  """The state before the first step."""
  params = variables['params']
  return TrainState(jnp.zeros((), jnp.int32), params, variables.get('batch_stats', {}),
                    tx.init(params))
