"""Distillation via intermediate classifiers: the cohort teaches (arXiv 2103.00497)."""
from typing import Annotated

import jax.numpy as jnp
from flax import linen as nn

from kdih.cohort import soft_label_mean
from kdih.cohort.member_weights import RULES
from kdih.cohort.members import FINAL
from kdih.config.values import Choice
from kdih.distillation import losses, method, options
from kdih.distillation.signal import Hearing


class Method(method.Method):
  """The loss of `losses.cohort_loss` over the heads and the teacher's own classifier.

  Where the members share a temperature their mean soft label teaches, unless
  `config.compute.mean_soft_label` is off.

  Attributes:
    alpha: weight of the teachers, in [0, 1]: one number, or one per member (heads in tap order,
      then the teacher). A member of 0 is left out.
    temperature: T, likewise.
    reduction: 'sum' (the paper) or 'mean' over the members.
    cross_entropy: 'per_branch' (the formula) or 'once'.
    members: 'cohort', or 'teacher' for the control in which the teacher takes every head's place.
    weights: of the members: 'equal', by 'accuracy' on the validation split, or 'learnt' there; see
      `kdih.cohort.member_weights.weigh`.
    gain: how much more every teacher counts; 1 but where a recipe has weights that do not add to 1.
    standardise: show the KL standardised logits, see `losses.standardise`.
  """

  taught_by = 'cohort'

  alpha: options.AlphaPerMember
  temperature: options.TemperaturePerMember
  reduction: Annotated[str, Choice(('sum', 'mean'))]
  cross_entropy: Annotated[str, Choice(('per_branch', 'once'))]
  members: Annotated[str, Choice(('cohort', 'teacher'))]
  weights: Annotated[str, Choice(('equal', *RULES))]
  gain: options.PositiveWeight
  standardise: options.Flag

  @nn.nowrap
  def check(self):
    """See `kdih.distillation.method.Method`."""
    alphas, _ = self._per_member()
    if not any(alphas):
      raise ValueError('alpha: is 0 for every member, so that none teaches; use the method ce')

  def __call__(self, lesson):
    """[batch]; see `kdih.distillation.method.Method`."""
    student, labels = lesson.student.logits, lesson.labels
    heard = self.hear(lesson)
    alphas, temperatures = self._per_member()
    choices = dict(
        reduction=self.reduction, cross_entropy_per=self.cross_entropy, gain=self.gain,
        weights=self._chosen(lesson.weights), view=self._view)
    if (temperature := self._shared_temperature()) is None:
      parts = jnp.split(heard, self.context.num_members, axis=-1)
      members = {str(number): logits for number, logits in enumerate(parts)}
      return losses.cohort_loss(student, members, labels, alphas, temperatures, **choices)
    label = losses.SoftLabel(mean=heard[:, :-1], spread=heard[:, -1])
    return losses.soft_label_loss(student, label, labels, alphas, temperature, **choices)

  @property
  def hearing(self):
    """The mean soft label and its spread; the members' logits where they differ in T."""
    if self._shared_temperature() is None:
      return Hearing(f'the logits of all members ({self.members})', self._logits)
    alphas, _ = self._per_member()
    shares = tuple(a / max(alphas) for a in alphas)
    return Hearing(
        f'the mean soft label ({self.members}, shares {shares}, temperature '
        f'{self._shared_temperature()}, weights {self.weights}, standardise {self.standardise})',
        self._soft_label)

  @nn.nowrap
  def _logits(self, teacher, members, weights):
    del teacher, weights
    return jnp.concatenate(list(self._members(members).values()), axis=-1)

  @nn.nowrap
  def _soft_label(self, teacher, members, weights):
    del teacher
    label = soft_label_mean.mean_soft_label(
        self._members(members), self._per_member()[0], self._shared_temperature(),
        self._chosen(weights), self._view)
    return jnp.concatenate([label.mean, label.spread[:, None]], axis=-1)

  @nn.nowrap
  def _members(self, members):
    return members if self.members == 'cohort' else dict.fromkeys(members, members[FINAL])

  @nn.nowrap
  def _per_member(self):
    return [options.per_member(option, getattr(self, option), self.context.num_members)
            for option in ('alpha', 'temperature')]

  @nn.nowrap
  def _shared_temperature(self):
    """That of all members who teach, where their mean soft label is to teach in their place."""
    found = {t for a, t in zip(*self._per_member(), strict=True) if a > 0}
    return found.pop() if self.context.mean_soft_label and len(found) == 1 else None

  @property
  def _view(self):
    return losses.standardise if self.standardise else losses.as_they_are

  @nn.nowrap
  def _chosen(self, weights):
    if self.weights == 'equal':
      return None
    if self.weights not in weights:
      raise ValueError('weights of members come from the validation split and there is none; set '
                       'config.data.validation_fraction above 0, or weights to equal')
    return weights[self.weights]
