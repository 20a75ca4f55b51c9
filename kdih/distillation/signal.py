"""The teacher signal: what a method gets of its teachers for a batch, and what a cache keeps."""
import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax
import jax

from kdih.models.taps import Features


class SoftLabel(NamedTuple):
  """The mean soft label of members that share a temperature, for each image.

  Attributes:
    mean: the weighted mean of the members' soft labels, [batch, classes].
    spread: the weighted mean of their KL divergences from it, in nats, [batch].
  """

  mean: jax.Array
  spread: jax.Array


@flax.struct.dataclass
class TeacherSignal:
  """All that a method needs of its teachers for a batch: a pytree, without gradients.

  Every array leads with the batch, which is how a cache stores a signal image by image. A method
  that is taught by labels gets an empty one.

  Attributes:
    logits: of the teacher's own classifier, [batch, classes].
    features: {tap: [batch, height, width, channels]} of the teacher, from the shallowest to the
      deepest.
    preactivations: the same before their last ReLU, where the teacher sows it.
    embedding: what the teacher's classifier reads, [batch, width].
    members: logits of the cohort, [batch, members, classes]: heads in tap order, then `final`.
    soft_label: what a cache may keep of the members in their place.
  """

  logits: jax.Array | None = None
  features: Features = flax.struct.field(default_factory=OrderedDict)
  preactivations: Features = flax.struct.field(default_factory=OrderedDict)
  embedding: jax.Array | None = None
  members: jax.Array | None = None
  soft_label: SoftLabel | None = None


@dataclasses.dataclass(frozen=True)
class Summary:
  """What a cache keeps of a teacher signal: all that a method reads of it.

  Attributes:
    name: says what is kept. Methods with summaries of one name share a cache.
    of: (signal, weights of the members, see `Lesson`) to the signal that is kept.
  """

  name: str
  of: Callable[[TeacherSignal, Mapping[str, jax.Array]], TeacherSignal]


LOGITS = Summary("the teacher's logits",
                 lambda signal, weights: TeacherSignal(logits=signal.logits))
