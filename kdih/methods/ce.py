"""Cross-entropy with the labels: the student without a teacher."""
from kdih.distillation import losses, method


class Method(method.Method):
  """CE(z, y)."""

  taught_by = 'labels'

  def __call__(self, lesson):
    """Returns 'ce'; see `kdih.distillation.method.Method`."""
    return {'ce': losses.cross_entropy(lesson.student.logits, lesson.labels)}
