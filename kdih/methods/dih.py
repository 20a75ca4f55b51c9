"""DIH: distillation via intermediate classifiers (arXiv 2103.00497)."""
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

_FINAL = -1  # Position of the teacher's own classifier among the members.


class _Member(NamedTuple):
  """The numbers of a member that the loss depends on.

  Attributes:
    position: position in the cohort.
    alpha: alpha_b.
    temperature: T_b.
    weight: alpha_b w_b, the weight of the member's KL.
  """

  position: int
  alpha: float
  temperature: float
  weight: jax.Array | float


class Method(method.Method):
  """Trains the student by the labels and by all members of the cohort, heads and teacher, together.

  For each image, with the logits t_b of the members b of the cohort, the student's logits z, the
  label y and p_T(z) = softmax(z / T), the paper's loss is

      L = sum_b [(1 - alpha_b) CE(z, y) + alpha_b T_b^2 KL(p_T_b(t_b) || p_T_b(z))]

  With all options, over the n members whose alpha_b is above 0, it is

      L = e sum_b (1 - alpha_b) CE(z, y)
          + g sum_b alpha_b w_b T_b^2 KL(p_T_b(S(t_b)) || p_T_b(S(z)))

  where e = 1 / n if `reduction` is 'mean' or `cross_entropy` is 'once', else 1; g = gain / n if
  `reduction` is 'mean', else gain; w_b are the members' weights; and S standardises the logits or
  is the identity.

  If the members share a temperature, the sum of the KLs is computed from the members' mean soft
  label, with the same value and gradient, see `losses.soft_label_kl`.
  `config.compute.mean_soft_label` turns this off.

  Source: arXiv 2103.00497, section 3. Standardised logits: Sun et al., CVPR 2024, arXiv 2403.01427.

  Attributes:
    alpha: weight of the members, in [0, 1]: one number, or one for each member (heads in tap
      order, then the teacher). A member with alpha 0 is left out of both sums and of n.
    temperature: T_b: one number, or one for each member.
    reduction: 'sum' over the members, as in the paper, or 'mean'.
    cross_entropy: 'per_branch', one cross-entropy for each member, as in the paper's formula; or
      'once', their mean, as in the paper's figure. With the reduction 'mean' both are the same.
    members: 'cohort'; or 'teacher', the control in which the teacher replaces every head.
    weights: w_b: 'equal', all 1; or 'accuracy' or 'learnt', fitted to the validation split after
      the heads are trained, see `kdih.cohort.member_weights.weigh`.
    gain: factor of the KL term, above 0; 1 unless a recipe has weights that do not add up to 1.
    standardise: standardise the logits for the KL term, see `losses.standardise`.
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
    self._per_member('temperature')
    if not any(self._per_member('alpha')):
      raise ValueError('alpha: is 0 for every member, and no member teaches; use the method ce')

  def __call__(self, lesson):
    z, y, teacher = lesson.student.logits, lesson.labels, lesson.teacher
    members = self._teaching_members(lesson.weights)

    ce_weight = sum(1 - member.alpha for member in members)
    if self.reduction == 'mean' or self.cross_entropy == 'once':
      ce_weight /= len(members)
    kl_weight = self.gain / (len(members) if self.reduction == 'mean' else 1)

    if (temperature := self._shared_temperature()) is None:
      kl = sum(member.weight * losses.tempered_kl(
          self._transform(z), self._transform(teacher.members[:, member.position]),
          member.temperature) for member in members)
    else:
      label = (self._soft_label(teacher, lesson.weights) if teacher.soft_label is None
               else teacher.soft_label)
      kl = sum(member.weight for member in members) * losses.soft_label_kl(
          self._transform(z), label, temperature)
    return {'ce': ce_weight * losses.cross_entropy(z, y), 'kl': kl_weight * kl}

  @property
  def summary(self):
    """Returns the members' mean soft label, or the logits of all; see `Context.cache_members`."""
    if self._shared_temperature() is None or self.context.cache_members:
      return Summary('the logits of all members',
                     lambda signal, weights: TeacherSignal(members=signal.members))
    alphas = self._per_member('alpha')
    ratios = tuple(alpha / max(alphas) for alpha in alphas)  # The mean depends on ratios only.
    return Summary(
        f'the mean soft label ({self.members}, shares {ratios}, temperature '
        f'{self._shared_temperature()}, weights {self.weights}, standardise {self.standardise})',
        lambda signal, weights: TeacherSignal(soft_label=self._soft_label(signal, weights)))

  @nn.nowrap
  def _teaching_members(self, weights: Mapping[str, jax.Array]) -> list[_Member]:
    """Returns the members with an alpha above 0."""
    alphas, temperatures = self._per_member('alpha'), self._per_member('temperature')
    if self.weights == 'equal':
      w = [1.0] * len(alphas)
    elif self.weights in weights:
      w = list(weights[self.weights])
    else:
      raise ValueError('weights of members come from the validation split and there is none; set '
                       'config.data.validation_fraction above 0, or weights to equal')
    return [_Member(_FINAL if self.members == 'teacher' else position, alpha, temperature,
                    alpha * w_b)
            for position, (alpha, temperature, w_b)
            in enumerate(zip(alphas, temperatures, w, strict=True)) if alpha > 0]

  @nn.nowrap
  def _soft_label(self, teacher: TeacherSignal, weights: Mapping[str, jax.Array]) -> SoftLabel:
    assert teacher.members is not None
    members = self._teaching_members(weights)
    logits = teacher.members[:, jnp.array([member.position for member in members])]
    return mean_soft_label(self._transform(logits), [member.weight for member in members],
                           members[0].temperature)

  @nn.nowrap
  def _shared_temperature(self) -> float | None:
    """Returns the temperature of all members that teach, for the loss by their mean soft label.

    Returns None if there are several temperatures, or if `config.compute.mean_soft_label` is off.
    """
    distinct = {temperature for alpha, temperature in zip(
        self._per_member('alpha'), self._per_member('temperature'), strict=True) if alpha > 0}
    return distinct.pop() if self.context.mean_soft_label and len(distinct) == 1 else None

  @nn.nowrap
  def _per_member(self, option: str) -> tuple[float, ...]:
    return options.per_member(option, getattr(self, option), self.context.num_members)

  @nn.nowrap
  def _transform(self, logits: jax.Array) -> jax.Array:
    """Returns the logits as the KL term reads them: standardised if the option is set."""
    return losses.standardise(logits) if self.standardise else logits
