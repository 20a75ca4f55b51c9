"""The teacher signal: the outputs of the teachers for a batch, as methods and caches use them."""
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
    spread: the weighted mean of KL(soft label of a member || `mean`), in nats, [batch].
  """

  mean: jax.Array
  spread: jax.Array


@flax.struct.dataclass(kw_only=True)
class TeacherSignal:
  """The outputs of the teachers for a batch that a method needs: a pytree, without gradients.

  The leading axis of every array is the batch, so that a cache can store a signal image by image.
  A method that is taught by the labels alone gets an empty signal.

  Attributes:
    logits: logits of the teacher's own classifier, [batch, classes].
    features: {tap: [batch, height, width, channels]}, the teacher's features from the shallowest
      to the deepest tap.
    preactivations: the same features before their last ReLU, for the taps at which the teacher
      sows them.
    embedding: the input of the teacher's classifier, [batch, width].
    members: logits of the cohort's members, [batch, members, classes]: heads in tap order, then
      `final`.
    soft_label: the members' mean soft label, which a cache may keep instead of `members`.
  """

  logits: jax.Array | None = None
  features: Features = flax.struct.field(default_factory=OrderedDict)
  preactivations: Features = flax.struct.field(default_factory=OrderedDict)
  embedding: jax.Array | None = None
  members: jax.Array | None = None
  soft_label: SoftLabel | None = None


@dataclasses.dataclass(frozen=True)
class Summary:
  """The part of a teacher signal that a method reads, and that a cache has to keep for it.

  Attributes:
    name: describes the part. Methods whose summaries have the same name share a cache.
    extract: function from (signal, weights of the members, see `Lesson`) to the signal to keep.
  """

  name: str
  extract: Callable[[TeacherSignal, Mapping[str, jax.Array]], TeacherSignal]


LOGITS = Summary("the teacher's logits",
                 lambda signal, weights: TeacherSignal(logits=signal.logits))
