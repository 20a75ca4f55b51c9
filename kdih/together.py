"""Several seeds of a student as one program: what is shown and taught to them is computed once."""
import dataclasses
from collections.abc import Sequence
from typing import Any

import ml_collections

from kdih import errors, loop, parallel
from kdih.experiment import Experiment
from kdih.progress import say
from kdih.tasks import Task


def train(
    experiments: Sequence[Experiment], phase: str, task: Task, variables: Sequence[Any],
    train: ml_collections.ConfigDict,
) -> list[Any] | None:
  """Trains each experiment's variables to the end of the phase, as each would alone.

  Every experiment's folder holds the checkpoints and metrics that it would hold had it trained
  alone, so that it can go on so; seconds and speed are those of all. Killed between two of a
  step's checkpoints, all go back to the one before.

  Args:
    experiments: that differ in their seed alone.
    phase: its name.
    task: of all of them.
    variables: those of each to begin with.
    train: how they train.

  Returns:
    The last variables of each, or None where they cannot go on together: their last checkpoints
    are too far apart, or a loss is not finite. Then each is to go on alone.
  """
  first = experiments[0]
  tx = first.optimizer(task, variables[0], train)
  learners = [experiment.learner(phase, own, tx)
              for experiment, own in zip(experiments, variables, strict=True)]
  begun = _begun(learners)
  if begun is None:
    say(f'{phase}: the seeds are not at one step; each goes on alone')
    return None
  program = first.program(phase, task, tx, train, first.config.sweep.together_by)
  named = [dataclasses.replace(learner, phase=f'{phase} seed {experiment.config.seed}')
           for learner, experiment in zip(learners, experiments, strict=True)]
  try:
    outcomes = loop.train_together(program, named, begun)
  except errors.NotFiniteError as error:
    say(f'{error}; each seed goes on alone')
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
