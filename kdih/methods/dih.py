"""Distillation via intermediate classifiers: the cohort teaches (arXiv 2103.00497)."""
from flax import linen as nn

from kdih import losses, options, teaching
from kdih.cohort import FINAL, RULES


class Method(teaching.Method):
  """The loss of `kdih.losses.cohort_loss` over the heads and the teacher's own classifier.

  Attributes:
    alpha: weight of the teachers, in [0, 1]: one number, or one per member (heads in tap order,
      then the teacher). A member of 0 is left out.
    temperature: T, likewise.
    reduction: 'sum' (the paper) or 'mean' over the members.
    cross_entropy: 'per_branch' (the formula) or 'once'.
    members: 'cohort', or 'teacher' for the control in which the teacher takes every head's place.
    weights: of the members: 'equal', by 'accuracy' on the validation split, or 'learnt' there; see
      `kdih.cohort.weigh`.
    gain: how much more every teacher counts; 1 but where a recipe has weights that do not add to 1.
    standardise: show the KL standardised logits, see `kdih.losses.standardise`.
  """

  taught_by = 'cohort'

  alpha: options.PerBranch
  temperature: options.PerBranch
  reduction: str
  cross_entropy: str
  members: str
  weights: str
  gain: float
  standardise: bool

  @nn.nowrap
  def check(self):
    """See `kdih.teaching.Method`."""
    options.check_alpha(self.alpha)
    options.check_temperature(self.temperature)
    options.check_choice('reduction', self.reduction, ('sum', 'mean'))
    options.check_choice('cross_entropy', self.cross_entropy, ('per_branch', 'once'))
    options.check_choice('members', self.members, ('cohort', 'teacher'))
    options.check_choice('weights', self.weights, ('equal', *RULES))
    options.check_positive('gain', self.gain)
    options.check_flag('standardise', self.standardise)
    options.per_branch('temperature', self.temperature, self.context.num_members)
    if not any(options.per_branch('alpha', self.alpha, self.context.num_members)):
      raise ValueError('alpha: is 0 for every member, so that none teaches; use the method ce')

  def __call__(self, lesson):
    """[batch]; see `kdih.teaching.Method`."""
    members = lesson.members
    if self.members == 'teacher':
      members = dict.fromkeys(members, members[FINAL])
    return losses.cohort_loss(
        lesson.student.logits, members, lesson.labels,
        options.per_branch('alpha', self.alpha, self.context.num_members),
        options.per_branch('temperature', self.temperature, self.context.num_members),
        reduction=self.reduction, cross_entropy_per=self.cross_entropy, gain=self.gain,
        weights=None if self.weights == 'equal' else self._chosen(lesson),
        view=losses.standardise if self.standardise else losses.as_they_are)

  def _chosen(self, lesson):
    if self.weights not in lesson.weights:
      raise ValueError('weights of members come from the validation split and there is none; set '
                       'config.data.validation_fraction above 0, or weights to equal')
    return lesson.weights[self.weights]
