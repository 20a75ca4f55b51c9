"""Several students as one program: they see the same batches, of which the teachers speak once.

They are students of one method, which differ in seed, learning rate or the method's numbers. Where
a batch is cut into parts, the teachers speak once for each group of students, see `Students`.
"""
import contextlib
import dataclasses
import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kdih import errors
from kdih.runtime import devices
from kdih.training import loop
from kdih.training.loop_schedule import LoopSchedule
from kdih.training.monitor import Monitor
from kdih.training.state import TrainState
from kdih.training.step import TrainStep

logger = logging.getLogger(__name__)

States = tuple[Any, ...]  # One for every group of students, stacked where it has several.


class Students:
  """The step of each of several students, as one step of all.

  Students that follow each other and have the same step are a group, which `jax.vmap` makes one;
  the groups follow each other in the program. Where teachers are asked part by part, each group
  asks them.

  Args:
    steps: one for every student.
    way: one of `choices.TOGETHER_BY`. 'unrolled' makes a group of every student; 'auto' does so on
      a CPU, where `jax.vmap` is far slower.
  """

  def __init__(self, steps: Sequence[TrainStep], way: str):
    unrolled = way == 'unrolled' or way == 'auto' and devices.on_cpu()
    groups = ([[step] for step in steps] if unrolled else
              [list(same) for _, same in itertools.groupby(steps, key=id)])
    self.sizes = tuple(len(group) for group in groups)
    self._steps = [group[0] for group in groups]

  def train_step(
      self, states: States, frozen: Any, batch: Any, signal: Any
  ) -> tuple[States, tuple[Any, ...]]:
    """Makes one update of every student; returns the metrics of each, in their order."""
    updated, metrics = [], []
    for step, size, state in zip(self._steps, self.sizes, states, strict=True):
      of_group = step if size == 1 else jax.vmap(step, in_axes=(0, None, None, None))
      state, found = of_group(state, frozen, batch, signal)
      updated.append(state)
      metrics.append(found)
    return tuple(updated), self.split(tuple(metrics))

  def join(self, trees: Sequence[Any]) -> States:
    """Returns the students' trees, one for each, as those of the groups."""
    rest = iter(trees)
    return tuple(_stacked(list(itertools.islice(rest, size))) for size in self.sizes)

  def split(self, trees: States) -> tuple[Any, ...]:
    """Returns a tree for every student: the opposite of `join`."""
    return tuple(itertools.chain.from_iterable(
        (tree,) if size == 1 else (jax.tree.map(lambda leaf, i=i: leaf[i], tree)
                                   for i in range(size))
        for tree, size in zip(trees, self.sizes, strict=True)))

  def first(self, states: States) -> TrainState:
    """Returns the state of the first student, whose step and order are those of all."""
    return self.split(states)[0]


def _stacked(trees: list[Any]) -> Any:
  return trees[0] if len(trees) == 1 else jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


class _Monitors:
  """Monitors of all students, as `loop` uses one."""

  def __init__(self, monitors: Sequence[Monitor]):
    self.each = monitors

  def record(self, number: int, metrics: Sequence[Any]) -> None:
    for monitor, own in zip(self.each, metrics, strict=True):
      monitor.record(number, own)

  def settle(self, number: int) -> None:
    for monitor in self.each:
      monitor.settle(number)

  def restart(self) -> None:
    for monitor in self.each:
      monitor.restart()

  def close(self) -> None:
    for monitor in self.each:
      monitor.close()


@dataclasses.dataclass(frozen=True)
class _Learners:
  """All students, as `loop` trains one: its state is that of all."""

  students: Students
  each: Sequence[loop.Learner]

  def monitor(self, schedule: LoopSchedule, metas: Sequence[dict], start: int) -> _Monitors:
    with contextlib.ExitStack() as opened:
      monitors = []
      for learner, meta in zip(self.each, metas, strict=True):
        monitors.append(learner.monitor(schedule, meta, start))
        opened.callback(monitors[-1].close)
      opened.pop_all()
    return _Monitors(monitors)

  def save(
      self, number: int, states: States, monitors: _Monitors, evaluate: Callable | None
  ) -> None:
    for learner, monitor, state in zip(
        self.each, monitors.each, self.students.split(states), strict=True):
      learner.save(number, state, monitor, evaluate)


def train(
    phase: str, make_program: Callable[[], loop.TrainProgram], students: Students,
    learners: Sequence[loop.Learner],
) -> list[Any] | None:
  """Trains each learner to the end of its phase, as it would learn alone.

  Every learner's folder holds the checkpoints and metrics that it would hold had it trained alone,
  and it can resume alone; seconds and speed are those of all. Killed between two of a step's
  checkpoints, all go back to the one before.

  Args:
    phase: its name, for messages.
    make_program: how all are trained; called once they are known to be at one step.
    students: makes one step of theirs.
    learners: that see the same batches and are taught alike.

  Returns:
    The last variables of each, or None where they cannot go on together: their last checkpoints
    are too far apart, or a loss is not finite. Then each is to go on alone.
  """
  begun = _begun(learners)
  if begun is None:
    logger.warning(f'{phase}: they are not at one step; each goes on alone')
    return None
  states, metas = zip(*begun, strict=True)
  try:
    last, _ = loop.train_from(make_program(), _Learners(students, learners),
                              students.join(states), list(metas), int(states[0].step))
  except errors.NotFiniteError as error:
    logger.warning(f'{error}; each goes on alone')
    return None
  return [devices.to_host(state.variables) for state in students.split(last)]


def _begun(learners: Sequence[loop.Learner]) -> list[tuple[Any, dict]] | None:
  """Returns the checkpoints to go on from, all of one step; later ones are removed."""
  common = set.intersection(*(set(learner.checkpoints.last_two) for learner in learners))
  if not common:
    return None
  for learner in learners:
    last = learner.checkpoints.last_step
    if last is not None and last > max(common):
      learner.checkpoints.drop(last)
  return [learner.begin() for learner in learners]
