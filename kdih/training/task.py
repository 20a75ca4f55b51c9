"""What a phase learns, and from where its step gets what the teachers say."""
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import optax

from kdih.data import sampling

Batch = dict[str, Any]  # Arrays, and what was taught.
Logits = dict[str, jax.Array]
Collections = dict[str, Any]
Arrays = dict[str, jax.Array]


class TeacherOutputs(Protocol):
  """From where a step gets what the teachers say: live, or from a table on the host or the devices.

  The tables are those of `kdih.cohort.cache`: a row of numbers for every view of every image.

  Attributes:
    width: numbers in a row; 0 for no table.
    resident: arrays that the step needs beside those of the loader.
    axes: for each of them the axis that is split over the devices, or None.
  """

  width: int
  resident: dict[str, Any]
  axes: dict[str, int | None]

  def feeds(
      self, batches: Iterator[sampling.Batch], seed: int, start: int
  ) -> Iterator[sampling.Batch]:
    """Adds what the host has to send to the batches of the steps from `start` on; here nothing."""
    del seed, start
    return batches

  def look_up(self, resident: Arrays, index: jax.Array, key: jax.Array) -> Arrays:
    """Inside a step with this `key`: {'heard': float32 [batch, width]}; {} if it was sent."""
    del resident, index, key
    return {}


class LiveOutputs(TeacherOutputs):
  """The teachers speak for themselves, at every step: there is no table."""

  def __init__(self):
    self.width, self.resident, self.axes = 0, {}, {}


@dataclasses.dataclass(frozen=True)
class Task:
  """One phase's learning problem.

  Attributes:
    loss: (params, collections, frozen, batch, key) to (mean loss of the batch, (new collections,
      logits of what is learnt)). Differentiated with respect to `params` alone. The key, of
      dropout, is another one on every device; `batch['key']` is the same.
    predict: (variables, frozen, images) to logits by name, in evaluation mode.
    frozen: variables that the two read and nothing changes.
    reference: the prediction that the others' agreement is measured with; '' for none.
    partial: whether the loss may leave some of the parameters out.
    teach: (frozen, batch) to what no parameter has a part in; the loss finds it as
      `batch['taught']`.
    table: where a step finds what the teachers say; what it finds is `batch['heard']`.
  """

  loss: Callable[[Any, Collections, Any, Batch, jax.Array],
                 tuple[jax.Array, tuple[Collections, Logits]]]
  predict: Callable[[Any, Any, jax.Array], Logits]
  frozen: Any
  reference: str = ''
  partial: bool = False
  teach: Callable[[Any, Batch], Any] = lambda frozen, batch: None
  table: TeacherOutputs = LiveOutputs()


@dataclasses.dataclass(frozen=True, eq=False)
class Learning:
  """What a student learns, and how: the task, and the optimizer of its params."""

  task: Task
  tx: optax.GradientTransformation
