"""What every method is: a loss, as a linen module whose fields are its options."""
import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdih.distillation import losses, options
from kdih.distillation.lesson import Lesson
from kdih.distillation.signal import Summary

# A loss by its terms, such as 'ce' and 'kl', weighted. Each is [batch], or a scalar where it
# couples the images of a batch. The step takes the mean of each over the batch; their sum is the
# loss. Every one is logged under its name, which is not 'loss' or 'top1'.
Terms = dict[str, jax.Array]

STUDENT = 'student'  # As the name of a model: one like the student.


def total(terms: Terms) -> jax.Array:
  """Returns the loss of a batch: the sum of the means of its terms."""
  return sum((term.mean() for term in terms.values()), jnp.zeros(()))


@dataclasses.dataclass(frozen=True)
class Context:
  """What a method is made for.

  Attributes:
    num_members: size of the cohort, the teacher's own classifier included.
    axis_name: for batch norms, see `kdih.models.layers.batch_norm`.
    model: makes a model for the data set by its name; `STUDENT` makes one like the student.
    method: makes the method of another entry of `config.methods`.
    mean_soft_label: teach by the cohort's mean soft label where its members share a temperature.
    cache_members: cache the logits of every member, which serve every weighting and temperature, in
      the place of the mean soft label.
  """

  num_members: int = 1
  axis_name: str | None = None
  model: Callable[[str], nn.Module] = lambda name: nn.Module()
  method: Callable[[str], 'Method'] = lambda name: Method(Context())
  mean_soft_label: bool = True
  cache_members: bool = False


class Method(nn.Module):
  """How the student is taught: a loss, as a linen module whose fields are the method's options.

  An option's type says which values it takes, `Annotated[float, Number(0, 1)]`; see `options`.

  What it defines in `setup` or `__call__` is trained beside the student, kept in its checkpoints
  and left out of the exported student: parameters, `batch_stats`, and the collection `memory` for
  what is kept from step to step without gradients. `memory` has to be the same on every device, and
  so have whole numbers in other collections, of whose other numbers the mean over the devices is
  kept. Parameters that a loss does not depend on stay as they are.

  Attributes:
    context: what it is made for.
  """

  context: Context

  @property
  def taught_by(self) -> str:
    """'labels', 'teacher' or 'cohort': what has to be there before it."""
    return 'teacher'

  @property
  def prepares(self) -> bool:
    """Whether `prepare` is to be trained before the loss itself."""
    return False

  @property
  def summary(self) -> Summary | None:
    """What a cache keeps of the teacher signal; None for a method that reads more than logits."""
    return None

  @property
  def needs_train_labels(self) -> bool:
    """Whether it reads `Lesson.train_labels`."""
    return False

  @property
  def couples(self) -> bool:
    """Whether the loss of an image depends on the others of its batch, which then cannot be cut
    into parts."""
    return False

  @property
  def assistants(self) -> tuple[str, ...]:
    """Names of models that are taught one after the other, each by the one before and the first
    by the teacher, until the last one teaches the student."""
    return ()

  @nn.nowrap
  def check(self) -> None:
    """Raises ValueError where options do not fit together; the line begins with the name of one."""

  def __call__(self, lesson: Lesson) -> Terms:
    """Returns the terms of the loss.

    Raises:
      ValueError: this teacher cannot teach this student so; the reason.
    """
    raise NotImplementedError

  def prepare(self, lesson: Lesson) -> Terms:
    """Returns the terms of the loss of the phase before; as `__call__`."""
    raise NotImplementedError


class FeatureMethod(Method):
  """Cross-entropy ('ce') and a term ('feature') that compares what lies before the logits.

      cross_entropy * CE(z, y) + weight * term

  Attributes:
    cross_entropy: weight of the labels, 0 or more.
    weight: of the term, above 0.
  """

  cross_entropy: options.Weight
  weight: options.PositiveWeight

  def term(self, lesson: Lesson) -> jax.Array:
    """The unweighted term: [batch] or scalar; see `Method.__call__`."""
    raise NotImplementedError

  def __call__(self, lesson: Lesson) -> Terms:
    """Returns 'ce' and 'feature'; see `Method.__call__`."""
    label_loss = losses.cross_entropy(lesson.student.logits, lesson.labels)
    return {'ce': self.cross_entropy * label_loss, 'feature': self.weight * self.term(lesson)}
