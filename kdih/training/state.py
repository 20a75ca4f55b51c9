"""What training changes."""
import dataclasses
from collections.abc import Mapping
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
    seed: uint32 scalar, of dropout and the method's random numbers. It is here and not in the
      program so that all seeds share one compiled program.
    order_seed: uint32 scalar, of the augmentation.
    pace: float32 scalar that the learning rate is multiplied with: 1, until a rewind halves it.
    params: what is learnt.
    collections: the other variables, by collection: `batch_stats`, whatever a model keeps beside
      them, and the `memory` of a method; {} without any.
    opt_state: of the optax transformation, for `params` alone.
  """

  step: jax.Array
  seed: jax.Array
  order_seed: jax.Array
  pace: jax.Array
  params: Any
  collections: dict[str, Any]
  opt_state: optax.OptState

  def apply_gradients(
      self, tx: optax.GradientTransformation, gradients: Any, collections: dict[str, Any]
  ) -> 'TrainState':
    """Returns the state after the update that the gradients make, with its new collections."""
    updates, opt_state = tx.update(gradients, self.opt_state, self.params)
    updates = jax.tree.map(lambda update: update * self.pace.astype(update.dtype), updates)
    return dataclasses.replace(
        self, step=self.step + 1, params=optax.apply_updates(self.params, updates),
        opt_state=opt_state, collections=collections)

  @property
  def variables(self) -> dict[str, Any]:
    """{'params', 'batch_stats', ...}; the latter only where there are any."""
    return {'params': self.params, **self.collections}


def create(
    variables: dict[str, Any], tx: optax.GradientTransformation, seed: int, order_seed: int = -1
) -> TrainState:
  """The state before the first step; an `order_seed` of -1 is `seed`."""
  params = variables['params']
  collections = {name: tree for name, tree in variables.items() if name != 'params'}
  of_order = jnp.asarray(seed_of_order(seed, order_seed), jnp.uint32)
  return TrainState(jnp.zeros((), jnp.int32), jnp.asarray(seed, jnp.uint32), of_order,
                    jnp.ones((), jnp.float32), params, collections, tx.init(params))


def seed_of_order(seed: int, order_seed: int) -> int:
  """What seeds order and augmentation: `order_seed`, or `seed` where that is -1."""
  return seed if order_seed == -1 else order_seed


def step_key(seed: jax.Array, step: jax.Array) -> jax.Array:
  """The key that the random numbers of a step come from, its augmentation among them."""
  return jax.random.fold_in(jax.random.key(seed), step)


def join(**parts: Mapping[str, Any]) -> dict[str, Any]:
  """The variables of several modules as those of one: {collection: {part: ...}}."""
  names = sorted({name for variables in parts.values() for name in variables})
  return {name: {part: variables[name] for part, variables in parts.items() if name in variables}
          for name in names}


def part(variables: dict[str, Any], name: str) -> dict[str, Any]:
  """The variables of one of the modules that `join` made one."""
  return {collection: tree[name] for collection, tree in variables.items() if name in tree}
