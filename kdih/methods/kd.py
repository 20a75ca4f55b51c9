"""Knowledge distillation from the teacher's own classifier (Hinton et al., arXiv 1503.02531)."""
import dataclasses
from typing import ClassVar

from kdih import losses, options
from kdih.cohort import FINAL


@dataclasses.dataclass(frozen=True)
class Method:
  """scale * [(1 - alpha) CE(z, y) + alpha T^2 KL(p_T(t) || p_T(z))].

  Attributes:
    alpha: weight of the teacher, in [0, 1].
    temperature: T.
    scale: 'one', or 'cohort' for as many times the loss as the cohort has members: the control
      that tells what DIH gains from its teachers from what it gains from a larger loss.
  """

  taught_by: ClassVar[str] = 'teacher'
  num_members: int
  alpha: float
  temperature: float
  scale: str

  def __post_init__(self):
    options.check_single('alpha', self.alpha)
    options.check_single('temperature', self.temperature)
    options.check_alpha(self.alpha)
    options.check_temperature(self.temperature)
    options.check_choice('scale', self.scale, ('one', 'cohort'))

  def loss(self, student, members, labels):
    """[batch]; see `kdih.methods.Method`."""
    scale = self.num_members if self.scale == 'cohort' else 1
    return scale * losses.kd_loss(student, members[FINAL], labels, self.alpha, self.temperature)
