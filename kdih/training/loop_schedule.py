"""When the loop evaluates, saves and logs, and how many steps a call makes."""
import dataclasses


@dataclasses.dataclass(frozen=True)
class LoopSchedule:
  """When the loop does what, in steps.

  Attributes:
    phase: its name, for messages.
    total_steps: updates in all.
    evaluate_every: updates between evaluations, each followed by a checkpoint.
    log_every: updates between looks at the metrics, counted from an evaluation.
    batch_size: global, for examples per second.
    steps_per_epoch: for the progress line.
    max_rewinds: how often a loss that is not finite sends it back to the last checkpoint.
    per_call: updates that one call makes, at most.
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
    """Whether an evaluation, and a checkpoint, follow the update number `step`."""
    return step % self.evaluate_every == 0 or step == self.total_steps

  def logs_after(self, step: int) -> bool:
    """Whether a line of metrics tells of the updates up to number `step`."""
    return step % self.evaluate_every % self.log_every == 0
