"""The steps after which the loop evaluates, saves and logs."""
import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopSchedule:
  """The steps after which the loop evaluates, saves, logs and ends.

  Attributes:
    phase: name of the phase, for messages.
    total_steps: number of updates of the phase.
    evaluate_every: updates between evaluations, each followed by a checkpoint.
    log_every: updates between log lines, counted from an evaluation.
    batch_size: global batch size, to compute examples per second.
    steps_per_epoch: number of steps of an epoch, for the progress line.
    max_rewinds: how often training goes back to a checkpoint when the loss is not finite.
    per_call: the largest number of updates in one call of the compiled step.
  """

  phase: str
  total_steps: int
  evaluate_every: int
  log_every: int
  batch_size: int
  steps_per_epoch: float
  max_rewinds: int
  per_call: int = 1

  def evaluates_after(self, step: int) -> bool:
    """Returns whether an evaluation and a checkpoint follow update number `step`."""
    return step % self.evaluate_every == 0 or step == self.total_steps

  def logs_after(self, step: int) -> bool:
    """Returns whether a log line, with means of the updates before it, follows update `step`."""
    return step % self.evaluate_every % self.log_every == 0
