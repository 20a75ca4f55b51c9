"""Knowledge distillation from the teacher's own classifier (Hinton et al., arXiv 1503.02531)."""
from typing import Annotated

from kdih.config.values import Choice
from kdih.distillation import losses, method, options
from kdih.distillation.signal import LOGITS


class Method(method.Method):
  """scale * [(1 - alpha) CE(z, y) + alpha gain T^2 KL(p_T(t) || p_T(z))].

  Attributes:
    alpha: weight of the teacher, in [0, 1].
    temperature: T.
    scale: 'one', or 'cohort' for as many times the loss as the cohort has members: the control
      that tells what DIH gains from its teachers from what it gains from a larger loss.
    gain: how much more the teacher counts; 1 but where a recipe has weights that do not add to 1.
    standardise: show the KL standardised logits, see `losses.standardise`.
  """

  summary = LOGITS

  alpha: options.Alpha
  temperature: options.Temperature
  scale: Annotated[str, Choice(('one', 'cohort'))]
  gain: options.PositiveWeight
  standardise: options.Flag

  def __call__(self, lesson):
    """Returns 'ce' and 'kl'; see `kdih.distillation.method.Method`."""
    terms = losses.kd_terms(
        lesson.student.logits, lesson.teacher.logits, lesson.labels, self.alpha, self.temperature,
        self.gain, losses.standardise if self.standardise else losses.as_they_are)
    scale = self.context.num_members if self.scale == 'cohort' else 1
    return {name: scale * term for name, term in terms.items()}
