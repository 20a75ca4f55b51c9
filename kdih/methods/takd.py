"""Teacher assistants (Mirzadeh et al., 2020, arXiv 1902.03393, section 3)."""
from flax import linen as nn

from kdih.distillation import losses, method, options


class Method(method.Method):
  """KD from teacher to assistant, from assistant to assistant, and from the last to the student.

  Every link learns by (1 - alpha) CE(z, y) + alpha T^2 KL(p_T(t) || p_T(z)), with the schedule of
  `config.student.train`.

  Attributes:
    chain: names of the assistants' models, from the teacher's to the student's side.
    alpha: weight of the teacher, in [0, 1].
    temperature: T.
  """

  chain: tuple[str, ...]
  alpha: float
  temperature: float

  @nn.nowrap
  def check(self):
    """See `kdih.distillation.method.Method`."""
    if not (self.chain and isinstance(self.chain, tuple)):
      raise ValueError(f'chain: is {self.chain!r}; name one model or more, such as '
                       "('resnet56', 'resnet20'), or use the method kd")
    for option in ('alpha', 'temperature'):
      options.check_single(option, getattr(self, option))
    options.check_alpha(self.alpha)
    options.check_temperature(self.temperature)

  @property
  def assistants(self):
    """See `kdih.distillation.method.Method`."""
    return self.chain

  def __call__(self, lesson):
    """[batch]; see `kdih.distillation.method.Method`."""
    return losses.kd_loss(lesson.student.logits, lesson.teacher.logits, lesson.labels,
                          self.alpha, self.temperature)
