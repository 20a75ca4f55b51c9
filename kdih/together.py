"""Several students as one program: what is shown and taught to them is computed once."""
import dataclasses
from collections.abc import Sequence
from typing import Any

import ml_collections

from kdih import errors, loop, parallel
from kdih.experiment import Experiment
from kdih.progress import say
from kdih.steps import Learning


@dataclasses.dataclass(frozen=True)
class Student:
  """One of those who learn together.

  Attributes:
    experiment: its own.
    phase: the name of the phase in its folder.
    learning: what it learns; students of the same can be one by `jax.vmap`.
    variables: to begin with.
  """

  experiment: Experiment
  phase: str
  learning: Learning
  variables: Any

  def learner(self) -> loop.Learner:
    """What is trained."""
    return self.experiment.learner(self.phase, self.variables, self.learning.tx)

  @property
  def name(self) -> str:
    """What messages call it."""
    return f'{self.phase} seed {self.experiment.config.seed}'


def train(students: Sequence[Student], train: ml_collections.ConfigDict) -> list[Any] | None:
  """Trains each student to the end of its phase, as it would learn alone.

  Every student's folder holds the checkpoints and metrics that it would hold had it trained alone,
  so that it can go on so; seconds and speed are those of all. Killed between two of a step's
  checkpoints, all go back to the one before.

  Args:
    students: that see the same batches and are taught alike.
    train: how they train, but for what their `learning` has of its own.

  Returns:
    The last variables of each, or None where they cannot go on together: their last checkpoints
    are too far apart, or a loss is not finite. Then each is to go on alone.
  """
  first, learners = students[0], [student.learner() for student in students]
  begun = _begun(learners)
  if begun is None:
    say(f'{first.phase}: they are not at one step; each goes on alone')
    return None
  program = first.experiment.program(
      first.phase, [student.learning for student in students], train,
      first.experiment.config.sweep.together_by)
  named = [dataclasses.replace(learner, phase=student.name)
           for learner, student in zip(learners, students, strict=True)]
  try:
    outcomes = loop.train_together(program, named, begun)
  except errors.NotFiniteError as error:
    say(f'{error}; each goes on alone')
    return None
  return [parallel.to_host(outcome.state.variables) for outcome in outcomes]


def _begun(learners: Sequence[loop.Learner]) -> list[tuple[Any, dict]] | None:
  """The checkpoints to go on from, all of one step; later ones are removed."""
  common = set.intersection(*(set(learner.checkpoints.last_two) for learner in learners))
  if not common:
    return None
  for learner in learners:
    last = learner.checkpoints.last_step
    if last is not None and last > max(common):
      learner.checkpoints.drop(last)
  return [learner.checkpoints.restore_last() or (parallel.to_host(learner.state), {})
          for learner in learners]
