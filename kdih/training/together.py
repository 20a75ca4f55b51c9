"""Training of several students as one program: they share the batches and the teacher signal.

The students are of one method and differ in seed, learning rate or the numbers of the method. If a
batch is cut into parts, the teacher signal is computed for each group of students, see `Students`.
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

States = tuple[Any, ...]  # A state for each group of students, stacked if it has several.


class Students:
  """One step that updates several students.

  Consecutive students with the same step are a group, whose updates `jax.vmap` computes together;
  the program computes one group after the other. If the teacher signal is computed in parts, each
  group computes it.

  Args:
    steps: a step for each student.
    way: one of `choices.TOGETHER_BY`. With 'unrolled' each student is a group; 'auto' is
      'unrolled' on a CPU, where `jax.vmap` is far slower, and 'vmap' elsewhere.
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
    """Makes one update of every student, and returns (states, metrics of each student)."""
    updated, metrics = [], []
    for step, size, state in zip(self._steps, self.sizes, states, strict=True):
      group_step = step if size == 1 else jax.vmap(step, in_axes=(0, None, None, None))
      state, group_metrics = group_step(state, frozen, batch, signal)
      updated.append(state)
      metrics.append(group_metrics)
    return tuple(updated), self.split(tuple(metrics))

  def join(self, trees: Sequence[Any]) -> States:
    """Returns a tree for each group, stacked if it has several students, from one per student."""
    rest = iter(trees)
    return tuple(_stacked(list(itertools.islice(rest, size))) for size in self.sizes)

  def split(self, trees: States) -> tuple[Any, ...]:
    """Returns a tree for each student from one per group; the inverse of `join`."""
    return tuple(itertools.chain.from_iterable(
        (tree,) if size == 1 else (jax.tree.map(lambda leaf, i=i: leaf[i], tree)
                                   for i in range(size))
        for tree, size in zip(trees, self.sizes, strict=True)))

  def first(self, states: States) -> TrainState:
    """Returns the state of the first student; all students have its step and its order seed."""
    return self.split(states)[0]


def _stacked(trees: list[Any]) -> Any:
  return trees[0] if len(trees) == 1 else jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


class _Monitors:
  """The monitors of all students, with the methods of one `Monitor`."""

  def __init__(self, monitors: Sequence[Monitor]):
    self.monitors = monitors

  def record(self, number: int, metrics: Sequence[Any]) -> None:
    for monitor, own_metrics in zip(self.monitors, metrics, strict=True):
      monitor.record(number, own_metrics)

  def settle(self, number: int) -> None:
    for monitor in self.monitors:
      monitor.settle(number)

  def restart(self) -> None:
    for monitor in self.monitors:
      monitor.restart()

  def close(self) -> None:
    for monitor in self.monitors:
      monitor.close()


@dataclasses.dataclass(frozen=True)
class _Learners:
  """All students, with the methods of one `loop.Learner`; the state holds those of all."""

  students: Students
  learners: Sequence[loop.Learner]

  def monitor(self, schedule: LoopSchedule, metas: Sequence[dict], start: int) -> _Monitors:
    with contextlib.ExitStack() as opened:
      monitors = []
      for learner, meta in zip(self.learners, metas, strict=True):
        monitors.append(learner.monitor(schedule, meta, start))
        opened.callback(monitors[-1].close)
      opened.pop_all()
    return _Monitors(monitors)

  def save(
      self, number: int, states: States, monitors: _Monitors, evaluate: Callable | None
  ) -> None:
    for learner, monitor, state in zip(
        self.learners, monitors.monitors, self.students.split(states), strict=True):
      learner.save(number, state, monitor, evaluate)


def train(
    phase: str, make_program: Callable[[], loop.TrainProgram], students: Students,
    learners: Sequence[loop.Learner],
) -> list[Any] | None:
  """Trains all learners to the end of their phase, with the results of training each alone.

  Every learner's folder gets the checkpoints and metrics of training alone, and the learner can
  resume alone; seconds and speed are those of all together. If the process is killed while the
  checkpoints of a step are written, all learners resume from the step before.

  Args:
    phase: name of the phase, for messages.
    make_program: makes the program that trains all; called if all learners are at one step.
    students: the step of all students.
    learners: the learners, which share the batches and the teacher signal.

  Returns:
    The last variables of each learner; or None if each has to train alone, because their last
    checkpoints are not of a common step or because a loss is not finite.
  """
  begun = _begun(learners)
  if begun is None:
    logger.warning(f'{phase}: the checkpoints are of different steps; each student trains alone')
    return None
  states, metas = zip(*begun, strict=True)
  program, start = make_program(), int(states[0].step)
  if 0 < start < program.schedule.total_steps:
    logger.info(f'{phase}: resumes from step {start}')
  try:
    last, _ = loop.train_from(
        program, _Learners(students, learners), students.join(states), list(metas), start)
  except errors.NotFiniteError as error:
    logger.warning(f'{error}; each student trains alone')
    return None
  return [devices.to_host(state.variables) for state in students.split(last)]


def _begun(learners: Sequence[loop.Learner]) -> list[tuple[Any, dict]] | None:
  """Returns each learner's checkpoint of the last common step; removes later checkpoints.

  Returns None if there is no common step.
  """
  common = set.intersection(*(set(learner.checkpoints.last_two) for learner in learners))
  if not common:
    return None
  for learner in learners:
    last = learner.checkpoints.last_step
    if last is not None and last > max(common):
      learner.checkpoints.drop(last)
  return [learner.begin() for learner in learners]
