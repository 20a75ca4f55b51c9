"""The base classes of methods: a loss, as a linen module whose fields are its options."""
import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdih.distillation import losses, options
from kdih.distillation.lesson import Lesson
from kdih.distillation.signal import Summary

# The weighted terms of a loss by name, such as 'ce' and 'kl'. A term is [batch], or a scalar if it
# compares the images of a batch with each other. The loss is the sum of the terms' means over the
# batch. Each mean is logged under its name, which must not be 'loss' or 'top1'.
Terms = dict[str, jax.Array]

STUDENT = 'student'  # The name that stands for the student's own model.


def total(terms: Terms) -> jax.Array:
  """Returns the loss of a batch, a scalar: the sum over the terms of their means."""
  return sum((term.mean() for term in terms.values()), jnp.zeros(()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
  """The run that a method is created for.

  Attributes:
    num_members: size of the cohort, including the teacher's own classifier.
    axis_name: axis of the devices for synchronized batch norm, or None; see
      `kdih.models.layers.batch_norm`.
    model: function from a model's name to the model for this data set; `STUDENT` names a model
      like the student.
    method: function from the name of an entry of `config.methods` to its method.
    mean_soft_label: compute the KL of members that share a temperature from their mean soft label.
    cache_members: cache the logits of every member, which serve every weighting and temperature,
      instead of the mean soft label.
  """

  num_members: int = 1
  axis_name: str | None = None
  model: Callable[[str], nn.Module] = lambda name: nn.Module()
  method: Callable[[str], 'Method'] = lambda name: Method(Context())
  mean_soft_label: bool = True
  cache_members: bool = False


class Method(nn.Module):
  """A way to teach the student: a loss, as a linen module whose fields are the method's options.

  The type of an option states its allowed values, such as `Annotated[float, Number(0, 1)]`; see
  `kdih.distillation.options`.

  Variables that a method defines are trained together with the student, kept in its checkpoints
  and left out of the exported student. A method may define parameters, `batch_stats`, and the
  collection `memory` for state that is kept from step to step without gradients. `memory` must be
  equal on all devices. In other collections the step averages floating-point numbers over the
  devices; integers must be equal on all devices. Parameters on which the loss does not depend keep
  their values.

  Attributes:
    context: the run that the method is created for.
  """

  context: Context

  @property
  def taught_by(self) -> str:
    """Returns what the method needs beside the student: 'labels', 'teacher' or 'cohort'."""
    return 'teacher'

  @property
  def prepares(self) -> bool:
    """Returns whether the loss of `prepare` is trained before that of `__call__`."""
    return False

  @property
  def summary(self) -> Summary | None:
    """Returns what a cache keeps of the teacher signal; None if the method reads features."""
    return None

  @property
  def needs_train_labels(self) -> bool:
    """Returns whether the method reads `Lesson.train_labels`."""
    return False

  @property
  def couples(self) -> bool:
    """Returns whether the loss of an image depends on the other images of its batch.

    A batch of such a method cannot be cut into parts (`config.compute.accumulate`).
    """
    return False

  @property
  def assistants(self) -> tuple[str, ...]:
    """Returns the names of assistant models, from the teacher's to the student's side.

    Each assistant is taught by the one before it, the first by the teacher; the last assistant
    teaches the student.
    """
    return ()

  @nn.nowrap
  def check(self) -> None:
    """Checks that the options fit together and fit the context.

    Raises:
      ValueError: they do not; the message begins with the name of an option and a colon.
    """

  def __call__(self, lesson: Lesson) -> Terms:
    """Returns the weighted terms of the loss by name.

    Raises:
      ValueError: this teacher cannot teach this student by the method; the message says why.
    """
    raise NotImplementedError

  def prepare(self, lesson: Lesson) -> Terms:
    """Returns the weighted terms of the preparation's loss by name; see `prepares`.

    Raises:
      ValueError: as `__call__`.
    """
    raise NotImplementedError


class FeatureMethod(Method):
  """A method that compares features or embeddings, beside the cross-entropy with the labels.

      L = cross_entropy CE(z, y) + weight term

  The terms of the loss are named 'ce' and 'feature'.

  Attributes:
    cross_entropy: weight of the labels, at least 0.
    weight: weight of the term, above 0.
  """

  cross_entropy: options.Weight
  weight: options.PositiveWeight

  def term(self, lesson: Lesson) -> jax.Array:
    """Returns the unweighted term, [batch] or a scalar.

    Raises:
      ValueError: as `Method.__call__`.
    """
    raise NotImplementedError

  def __call__(self, lesson: Lesson) -> Terms:
    label_loss = losses.cross_entropy(lesson.student.logits, lesson.labels)
    return {'ce': self.cross_entropy * label_loss, 'feature': self.weight * self.term(lesson)}
