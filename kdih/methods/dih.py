"""Distillation via intermediate classifiers: the cohort teaches (arXiv 2103.00497)."""
from collections.abc import Mapping
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from kdih.cohort.member_weights import RULES
from kdih.cohort.soft_label_mean import mean_soft_label
from kdih.config.values import Choice
from kdih.distillation import losses, method, options
from kdih.distillation.signal import SoftLabel, Summary, TeacherSignal

_LAST = -1  # The place of the teacher's own classifier among the members.


class _Branch(NamedTuple):
  """One member's part of the loss.

  Attributes:
    member: its place in the cohort.
    alpha: alpha_b.
    temperature: T_b.
    share: alpha_b w_b, by which its KL counts.
  """

  member: int
  alpha: float
  temperature: float
  share: jax.Array | float


class Method(method.Method):
  """The heads and the teacher's own classifier teach together (DIH, section 3).

  For each image, with the logits t_b of the members b of the cohort, the student's z, the label y
  and p_T(z) = softmax(z / T), the paper's loss is

      L = sum_b [(1 - alpha_b) CE(z, y) + alpha_b T_b^2 KL(p_T(t_b) || p_T(z))]

  and with every option, over the n members whose alpha_b is above 0,

      L = e sum_b (1 - alpha_b) CE(z, y) + g sum_b alpha_b w_b T_b^2 KL(p_T(S t_b) || p_T(S z))

  where e = 1, or 1 / n by `reduction` or `cross_entropy`; g = gain, or gain / n by `reduction`; the
  w_b are the members' weights, and S standardises logits or leaves them as they are. Where the
  members share a temperature, the sum over b of the KLs is computed from their mean soft label, to
  the same value and gradient; see `losses.soft_label_kl`. `config.compute.mean_soft_label` turns
  that off. The defaults of the options are in `kdih.config.method_presets`.

  Attributes:
    alpha: weight of the teachers, in [0, 1]: one number, or one per member (heads in tap order,
      then the teacher). A member of 0 is left out of both sums, and of n.
    temperature: T, likewise.
    reduction: over the members: 'sum' (the paper) or 'mean'.
    cross_entropy: 'per_branch', one of every member (the paper's formula), or 'once', their mean
      (the paper's figure). The reduction 'mean' makes it the mean anyway.
    members: 'cohort', or 'teacher' for the control in which the teacher takes every head's place.
    weights: w_b: 'equal', all 1; or fitted to the validation split after the heads are trained, by
      'accuracy' or 'learnt'; see `kdih.cohort.member_weights.weigh`.
    gain: factor of the KL term; not 1 only in recipes such as 0.1 CE + 9 KL.
    standardise: standardise the logits for the KL; see `losses.standardise`.
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
    self._per_member('temperature')
    if not any(self._per_member('alpha')):
      raise ValueError('alpha: is 0 for every member, so that none teaches; use the method ce')

  def __call__(self, lesson):
    """Returns 'ce' and 'kl'; see `kdih.distillation.method.Method`."""
    z, y, teacher = lesson.student.logits, lesson.labels, lesson.teacher
    branches = self._branches(lesson.weights)

    ce_weight = sum(1 - branch.alpha for branch in branches)
    if self.reduction == 'mean' or self.cross_entropy == 'once':
      ce_weight /= len(branches)
    kl_weight = self.gain / (len(branches) if self.reduction == 'mean' else 1)

    if (temperature := self._shared_temperature()) is None:
      kl = sum(branch.share * losses.tempered_kl(
          self._shown(z), self._shown(teacher.members[:, branch.member]), branch.temperature)
               for branch in branches)
    else:
      label = (self._soft_label(teacher, lesson.weights) if teacher.soft_label is None
               else teacher.soft_label)
      kl = sum(branch.share for branch in branches) * losses.soft_label_kl(
          self._shown(z), label, temperature)
    return {'ce': ce_weight * losses.cross_entropy(z, y), 'kl': kl_weight * kl}

  @property
  def summary(self):
    """The members' mean soft label, or the logits of each; see `Context.cache_members`."""
    if self._shared_temperature() is None or self.context.cache_members:
      return Summary('the logits of all members',
                     lambda signal, weights: TeacherSignal(members=signal.members))
    alphas = self._per_member('alpha')
    ratios = tuple(alpha / max(alphas) for alpha in alphas)  # The mean depends on these alone.
    return Summary(
        f'the mean soft label ({self.members}, shares {ratios}, temperature '
        f'{self._shared_temperature()}, weights {self.weights}, standardise {self.standardise})',
        lambda signal, weights: TeacherSignal(soft_label=self._soft_label(signal, weights)))

  @nn.nowrap
  def _branches(self, weights: Mapping[str, jax.Array]) -> list[_Branch]:
    """Returns the branches of the members that teach, those with an alpha above 0."""
    alphas, temperatures = self._per_member('alpha'), self._per_member('temperature')
    if self.weights == 'equal':
      w = [1.0] * len(alphas)
    elif self.weights in weights:
      w = list(weights[self.weights])
    else:
      raise ValueError('weights of members come from the validation split and there is none; set '
                       'config.data.validation_fraction above 0, or weights to equal')
    return [_Branch(_LAST if self.members == 'teacher' else member, alpha, temperature,
                    alpha * w_b)
            for member, (alpha, temperature, w_b)
            in enumerate(zip(alphas, temperatures, w, strict=True)) if alpha > 0]

  @nn.nowrap
  def _soft_label(self, teacher: TeacherSignal, weights: Mapping[str, jax.Array]) -> SoftLabel:
    assert teacher.members is not None, 'the cohort teaches'
    branches = self._branches(weights)
    members = teacher.members[:, jnp.array([branch.member for branch in branches])]
    return mean_soft_label(self._shown(members), [branch.share for branch in branches],
                           branches[0].temperature)

  @nn.nowrap
  def _shared_temperature(self) -> float | None:
    """Returns the temperature that all who teach have in common, to teach by their mean soft label.

    None where there are several, or where `config.compute.mean_soft_label` is off.
    """
    found = {temperature for alpha, temperature in zip(
        self._per_member('alpha'), self._per_member('temperature'), strict=True) if alpha > 0}
    return found.pop() if self.context.mean_soft_label and len(found) == 1 else None

  @nn.nowrap
  def _per_member(self, option: str) -> tuple[float, ...]:
    return options.per_member(option, getattr(self, option), self.context.num_members)

  @nn.nowrap
  def _shown(self, logits: jax.Array) -> jax.Array:
    """Returns what the KL sees of logits."""
    return losses.standardise(logits) if self.standardise else logits
