"""TAKD: teacher assistants (Mirzadeh et al., AAAI 2020, arXiv 1902.03393)."""
from kdih.distillation import losses, method, options


class Method(method.Method):
  """Distils from the teacher through a chain of assistants to the student, each by KD.

      L = (1 - alpha) CE(z, y) + alpha T^2 KL(p_T(t) || p_T(z))

  for every assistant and for the student, where t are the logits of the model before it in the
  chain. All of them train with the schedule of `config.student.train`.

  Source: Mirzadeh et al., AAAI 2020, arXiv 1902.03393, section 3.

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
    return self.chain

  def __call__(self, lesson):
    return losses.kd_terms(lesson.student.logits, lesson.teacher.logits, lesson.labels,
                           self.alpha, self.temperature)
