"""Cross-entropy with the labels: the student without a teacher."""
from kdih import losses, teaching


class Method(teaching.Method):
  """CE(z, y)."""

  taught_by = 'labels'

  def __call__(self, lesson):
    """[batch]; see `kdih.teaching.Method`."""
    return losses.cross_entropy(lesson.student.logits, lesson.labels)
