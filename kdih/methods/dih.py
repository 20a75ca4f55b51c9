"""Distillation via intermediate classifiers: the cohort teaches (arXiv 2103.00497)."""
import dataclasses
from typing import ClassVar

from kdih import losses, options
from kdih.cohort import FINAL


@dataclasses.dataclass(frozen=True)
class Method:
  """The loss of `kdih.losses.cohort_loss` over the heads and the teacher's own classifier.

  Attributes:
    alpha: weight of the teachers, in [0, 1]: one number, or one per member (heads in tap order,
      then the teacher). A member of 0 is left out.
    temperature: T, likewise.
    reduction: 'sum' (the paper) or 'mean' over the members.
    cross_entropy: 'per_branch' (the formula) or 'once'.
    members: 'cohort', or 'teacher' for the control in which the teacher takes every head's place.
  """

  taught_by: ClassVar[str] = 'cohort'
  num_members: int
  alpha: options.PerBranch
  temperature: options.PerBranch
  reduction: str
  cross_entropy: str
  members: str

  def __post_init__(self):
    options.check_alpha(self.alpha)
    options.check_temperature(self.temperature)
    options.check_choice('reduction', self.reduction, ('sum', 'mean'))
    options.check_choice('cross_entropy', self.cross_entropy, ('per_branch', 'once'))
    options.check_choice('members', self.members, ('cohort', 'teacher'))
    options.per_branch('temperature', self.temperature, self.num_members)
    if not any(options.per_branch('alpha', self.alpha, self.num_members)):
      raise ValueError('alpha: is 0 for every member, so that none teaches; use the method ce')

  def loss(self, student, members, labels):
    """[batch]; see `kdih.methods.Method`."""
    if self.members == 'teacher':
      members = dict.fromkeys(members, members[FINAL])
    return losses.cohort_loss(
        student, members, labels,
        options.per_branch('alpha', self.alpha, self.num_members),
        options.per_branch('temperature', self.temperature, self.num_members),
        reduction=self.reduction, cross_entropy_per=self.cross_entropy)
