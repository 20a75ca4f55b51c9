"""Heads on the teacher's taps, and the cohort that they form with the teacher's classifier."""
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from kdih import taps as taps_lib
from kdih.models import layers

FINAL = 'final'  # The teacher's own classifier, as a member of the cohort.
MEAN = 'mean'  # The mean of the members' soft labels, as a classifier.
RULES = ('accuracy', 'learnt')  # By which members are weighted; see `weigh`.


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
  output, _ = taps_lib.observe(teacher, frozen['teacher'], images, taps)
  return members_of(heads, frozen.get('heads'), output, taps)


def members_of(
    heads: nn.Module, variables: Any, output: taps_lib.Output, taps: Sequence[str]
) -> dict[str, jax.Array]:
  """As `cohort_logits`, from what the teacher said (with its features at `taps`, at least)."""
  logits: Any = heads.apply(variables, {t: output.features[t] for t in taps}) if taps else {}
  members = {**{tap: logits[tap] for tap in taps}, FINAL: output.logits}
  # One by one: a dict that goes through jax as a whole comes back with its keys sorted.
  return {name: jax.lax.stop_gradient(z) for name, z in members.items()}


def mean_logits(members: dict[str, jax.Array]) -> jax.Array:
  """log of the members' mean soft label at temperature 1, [batch, num_classes]."""
  log_probabilities = jnp.stack([jax.nn.log_softmax(z) for z in members.values()])
  return jax.nn.logsumexp(log_probabilities, axis=0) - jnp.log(float(len(members)))


def weigh(logits: dict[str, np.ndarray], labels: np.ndarray) -> dict[str, np.ndarray]:
  """Weights of the members by what they say of the validation images.

  'accuracy' is in proportion to each member's top-1. 'learnt' is a softmax, fitted with L-BFGS to
  the cross-entropy of the weighted mean of the members' soft labels (temperature 1).

  Args:
    logits: [images, num_classes] of every member, in cohort order.
    labels: int [images].

  Returns:
    For each of `RULES`, float32 [members], of mean 1.
  """
  stacked = np.stack(list(logits.values()))
  accuracy = (stacked.argmax(-1) == labels).mean(-1)
  right = np.take_along_axis(
      np.asarray(jax.nn.log_softmax(stacked)), labels[None, :, None], -1)[..., 0]

  def mixture_loss(scores):
    return -jax.nn.logsumexp(right + jax.nn.log_softmax(scores)[:, None], axis=0).mean()

  learnt = jax.nn.softmax(_minimise(mixture_loss, np.zeros(len(stacked), np.float32)))
  return {rule: np.asarray(weights / max(weights.mean(), 1e-12), np.float32)
          for rule, weights in zip(RULES, (accuracy, learnt), strict=True)}


def _minimise(loss, start: np.ndarray, steps: int = 50) -> jax.Array:
  solver = optax.lbfgs()
  value_and_grad = optax.value_and_grad_from_state(loss)

  @jax.jit
  def update(point, state):
    value, gradient = value_and_grad(point, state=state)
    change, state = solver.update(
        gradient, state, point, value=value, grad=gradient, value_fn=loss)
    return optax.apply_updates(point, change), state

  point, state = jnp.asarray(start), solver.init(jnp.asarray(start))
  for _ in range(steps):
    point, state = update(point, state)
  return point
