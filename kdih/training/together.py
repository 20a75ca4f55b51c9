"""Several students as one program: what is shown and taught to them is computed once.

How the step of one student becomes that of several is in `groups`.
"""
from collections.abc import Callable, Sequence
from typing import Any

from kdih import errors
from kdih.runtime import devices
from kdih.runtime.progress import say
from kdih.training import loop


def train(
    phase: str, make_program: Callable[[], loop.Program], learners: Sequence[loop.Learner]
) -> list[Any] | None:
  """Trains each learner to the end of its phase, as it would learn alone.

  Every learner's folder holds the checkpoints and metrics that it would hold had it trained alone,
  so that it can go on so; seconds and speed are those of all. Killed between two of a step's
  checkpoints, all go back to the one before.

  Args:
    phase: its name, for messages.
    make_program: how all are trained; called once they are known to be at one step.
    learners: that see the same batches and are taught alike.

  Returns:
    The last variables of each, or None where they cannot go on together: their last checkpoints
    are too far apart, or a loss is not finite. Then each is to go on alone.
  """
  begun = _begun(learners)
  if begun is None:
    say(f'{phase}: they are not at one step; each goes on alone')
    return None
  try:
    outcomes = loop.train_together(make_program(), learners, begun)
  except errors.NotFiniteError as error:
    say(f'{error}; each goes on alone')
    return None
  return [devices.to_host(outcome.state.variables) for outcome in outcomes]


def _begun(learners: Sequence[loop.Learner]) -> list[tuple[Any, dict]] | None:
  """The checkpoints to go on from, all of one step; later ones are removed."""
  common = set.intersection(*(set(learner.checkpoints.last_two) for learner in learners))
  if not common:
    return None
  for learner in learners:
    last = learner.checkpoints.last_step
    if last is not None and last > max(common):
      learner.checkpoints.drop(last)
  return [learner.checkpoints.restore_last() or (devices.to_host(learner.state), {})
          for learner in learners]
