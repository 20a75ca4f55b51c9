"""KD: knowledge distillation from the teacher's logits (Hinton et al., 2015, arXiv 1503.02531)."""
from typing import Annotated

from kdih.config.values import Choice
from kdih.distillation import losses, method, options
from kdih.distillation.signal import LOGITS


class Method(method.Method):
  """Trains the student by the labels and by the softened output of the teacher's own classifier.

      L = n [(1 - alpha) CE(z, y) + alpha gain T^2 KL(p_T(t) || p_T(z))],   p_T(z) = softmax(z / T)

  where n is 1, or the number of the cohort's members if `scale` is 'cohort'.

  Source: Hinton, Vinyals and Dean, 2015, arXiv 1503.02531, section 2. Standardised logits: Sun et
  al., CVPR 2024, arXiv 2403.01427.

  Attributes:
    alpha: weight of the teacher, in [0, 1].
    temperature: T.
    scale: 'one' or 'cohort'. 'cohort' makes the loss as large as that of DIH: the control that
      separates the effect of the heads from the effect of a larger loss.
    gain: factor of the KL term, above 0; 1 unless a recipe has weights that do not add up to 1.
    standardise: standardise the logits for the KL term, see `losses.standardise`.
  """

  summary = LOGITS

  alpha: options.Alpha
  temperature: options.Temperature
  scale: Annotated[str, Choice(('one', 'cohort'))]
  gain: options.PositiveWeight
  standardise: options.Flag

  def __call__(self, lesson):
    terms = losses.kd_terms(
        lesson.student.logits, lesson.teacher.logits, lesson.labels, self.alpha, self.temperature,
        self.gain, losses.standardise if self.standardise else losses.identity)
    scale = self.context.num_members if self.scale == 'cohort' else 1
    return {name: scale * term for name, term in terms.items()}
