"""CE: the student learns from the labels alone."""
from kdih.distillation import losses, method


class Method(method.Method):
  """Trains the student by the cross-entropy with the labels, the baseline without a teacher.

      L = CE(z, y)
  """

  taught_by = 'labels'

  def __call__(self, lesson):
    return {'ce': losses.cross_entropy(lesson.student.logits, lesson.labels)}
