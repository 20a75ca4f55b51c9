"""Cross-entropy with the labels: the student without a teacher."""
import dataclasses
from typing import ClassVar

from kdih import losses


@dataclasses.dataclass(frozen=True)
class Method:
  """CE(z, y)."""

  taught_by: ClassVar[str] = 'labels'
  num_members: int

  def loss(self, student, members, labels):
    """[batch]; see `kdih.methods.Method`."""
    del members
    return losses.cross_entropy(student, labels)
