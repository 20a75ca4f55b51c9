"""Teacher assistants (Mirzadeh et al., 2020, arXiv 1902.03393, section 3)."""

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

  chain: options.Names
  alpha: options.Alpha
  temperature: options.Temperature

  @property
  def assistants(self):
    """See `kdih.distillation.method.Method`."""
    return self.chain

  def __call__(self, lesson):
    """Returns 'ce' and 'kl'; see `kdih.distillation.method.Method`."""
    return losses.kd_terms(lesson.student.logits, lesson.teacher.logits, lesson.labels,
                           self.alpha, self.temperature)
