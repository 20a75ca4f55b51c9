"""The state of training: parameters, collections, optimizer state and random seeds."""
import dataclasses
from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass(kw_only=True)
class TrainState:
  """The variables of the modules that are trained, and of the optimizer.

  Attributes:
    step: int32 scalar, updates made so far.
    seed: uint32 scalar, seed of dropout and of a method's random numbers. It is part of the state
      and not of the program, so that all seeds share one compiled program.
    order_seed: uint32 scalar, seed of the augmentation.
    learning_rate_scale: float32 scalar, factor of the learning rate: 1, halved by every rewind.
    params: the trained parameters.
    collections: the other variables by collection: `batch_stats`, further collections of a model,
      and the `memory` of a method; {} if there are none.
    opt_state: state of the optimizer for `params`.
  """

  step: jax.Array
  seed: jax.Array
  order_seed: jax.Array
  learning_rate_scale: jax.Array
  params: Any
  collections: dict[str, Any]
  opt_state: optax.OptState

  def apply_gradients(
      self, tx: optax.GradientTransformation, gradients: Any, collections: dict[str, Any]
  ) -> 'TrainState':
    """Returns the state after one update of `tx` by the gradients.

    Args:
      tx: the optimizer.
      gradients: a tree like `params`.
      collections: the new collections.
    """
    updates, opt_state = tx.update(gradients, self.opt_state, self.params)
    updates = optax.tree.scale(self.learning_rate_scale, updates)
    return dataclasses.replace(
        self, step=self.step + 1, params=optax.apply_updates(self.params, updates),
        opt_state=opt_state, collections=collections)

  @property
  def variables(self) -> dict[str, Any]:
    """Returns {'params': ..., 'batch_stats': ..., ...}, with the collections that there are."""
    return {'params': self.params, **self.collections}


@flax.struct.dataclass(kw_only=True)
class StoredState:
  """A `TrainState` as a checkpoint holds it: the names and the order of its fields are stored.

  `pace` is the `learning_rate_scale`.
  """

  step: Any
  seed: Any
  order_seed: Any
  pace: Any
  params: Any
  collections: Any
  opt_state: Any


def to_stored(state: TrainState) -> StoredState:
  """Returns the state under the names that checkpoints have for its fields."""
  fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
  return StoredState(pace=fields.pop('learning_rate_scale'), **fields)


def from_stored(stored: StoredState) -> TrainState:
  """Returns the state that a checkpoint holds; the inverse of `to_stored`."""
  fields = {field.name: getattr(stored, field.name) for field in dataclasses.fields(stored)}
  return TrainState(learning_rate_scale=fields.pop('pace'), **fields)


def create(
    variables: dict[str, Any], tx: optax.GradientTransformation, seed: int, order_seed: int = -1
) -> TrainState:
  """Returns the state before the first step.

  Args:
    variables: {'params': ..., ...} of the modules that are trained.
    tx: the optimizer.
    seed: seed of dropout and of a method's random numbers.
    order_seed: seed of the augmentation; -1 stands for `seed`.
  """
  params = variables['params']
  return TrainState(
      step=jnp.zeros((), jnp.int32), seed=jnp.asarray(seed, jnp.uint32),
      order_seed=jnp.asarray(seed_of_order(seed, order_seed), jnp.uint32),
      learning_rate_scale=jnp.ones((), jnp.float32), params=params,
      collections={name: tree for name, tree in variables.items() if name != 'params'},
      opt_state=tx.init(params))


def seed_of_order(seed: int, order_seed: int) -> int:
  """Returns the seed of the order and the augmentation: `order_seed`, or `seed` if it is -1."""
  return seed if order_seed == -1 else order_seed


def step_key(seed: jax.Array, step: jax.Array) -> jax.Array:
  """Returns the key of a step's random numbers, including those of its augmentation."""
  return jax.random.fold_in(jax.random.key(seed), step)


def join(**parts: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the variables of several modules as those of one module, {collection: {part: ...}}."""
  names = sorted({name for variables in parts.values() for name in variables})
  return {name: {part: variables[name] for part, variables in parts.items() if name in variables}
          for name in names}


def part(variables: dict[str, Any], name: str) -> dict[str, Any]:
  """Returns the variables of one of the modules that `join` has joined."""
  return {collection: tree[name] for collection, tree in variables.items() if name in tree}
