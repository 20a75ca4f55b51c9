"""The members of the cohort: what the heads and the teacher's own classifier say of images."""
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax

from kdih.models import taps as taps_lib
from kdih.models.taps import Output
from kdih.training.task import Logits

FINAL = 'final'  # The teacher's own classifier, as a member of the cohort.
MEAN = 'mean'  # The mean of the members' soft labels, as a classifier.
# (frozen, images) to what the teacher says, if it is asked, and the logits of the members.
Teach = Callable[[Any, jax.Array], tuple[Output | None, Logits]]


def cohort_logits(
    teacher: nn.Module, heads: nn.Module, frozen: dict, images: jax.Array, taps: Sequence[str]
) -> dict[str, jax.Array]:
  """Logits [batch, num_classes] of every member: heads in tap order, then `final`.

  One forward pass of the teacher, in evaluation mode; no gradient leaves it.

  Args:
    teacher: the backbone.
    heads: the `Heads` mounted on it.
    frozen: {'teacher': variables, 'heads': variables}.
    images: float [batch, height, width, channels].
    taps: the taps that carry a head.
  """
  output, _ = taps_lib.observe(teacher, frozen['teacher'], images, taps)
  return members_of(heads, frozen.get('heads'), output, taps)


def members_of(
    heads: nn.Module, variables: Any, output: taps_lib.Output, taps: Sequence[str]
) -> dict[str, jax.Array]:
  """As `cohort_logits`, from what the teacher said (with its features at `taps`, at least)."""
  logits: Any = heads.apply(variables, {t: output.features[t] for t in taps}) if taps else {}
  members = {**{tap: logits[tap] for tap in taps}, FINAL: output.logits}
  # One by one: a dict that goes through jax as a whole comes back with its keys sorted.
  return {name: jax.lax.stop_gradient(z) for name, z in members.items()}


def make_teach(
    taught_by: str, teacher: nn.Module, teacher_taps: Sequence[str], heads: nn.Module,
    taps: Sequence[str],
) -> Teach:
  """What a method hears that is `taught_by` 'labels', 'teacher' or 'cohort'.

  Args:
    taught_by: see `kdih.distillation.method.Method`.
    teacher: its module.
    teacher_taps: those of its taps that methods read.
    heads: the module of the heads.
    taps: the taps that carry a head.
  """
  if taught_by == 'labels':
    return lambda *_: (None, {})
  members = tuple(taps) if taught_by == 'cohort' else ()

  def teach(frozen, images):
    output, _ = taps_lib.observe(
        teacher, frozen['teacher'], images, tuple(dict.fromkeys((*teacher_taps, *members))))
    output = _without_gradients(output)
    logits = members_of(heads, frozen.get('heads'), output, members)
    features = {tap: output.features[tap] for tap in teacher_taps}
    return dataclasses.replace(output, features=features), logits if members else {}

  return teach


def _without_gradients(output: Output) -> Output:
  def stopped(features):  # One by one, for jax would sort the keys.
    return {tap: jax.lax.stop_gradient(feature) for tap, feature in features.items()}

  return Output(jax.lax.stop_gradient(output.logits), stopped(output.features),
                stopped(output.preactivations), jax.lax.stop_gradient(output.embedding))
