"""The members of the cohort: the heads and the teacher's own classifier, and their logits."""
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdih.distillation.signal import TeacherSignal
from kdih.models import taps as taps_lib
from kdih.models.taps import Output

FINAL = 'final'  # The teacher's own classifier, as a member of the cohort.
MEAN = 'mean'  # The mean of the members' soft labels, as a classifier.
# (frozen variables, images) to the teacher signal.
Teach = Callable[[Any, jax.Array], TeacherSignal]


def cohort_logits(
    teacher: nn.Module, heads: nn.Module, frozen: dict, images: jax.Array, taps: Sequence[str]
) -> dict[str, jax.Array]:
  """Computes logits [batch, num_classes] of every member: heads in tap order, then `final`.

  Args:
    teacher: the backbone.
    heads: the `Heads` mounted on it.
    frozen: {'teacher': variables, 'heads': variables}.
    images: float [batch, height, width, channels].
    taps: the taps that carry a head.
  """
  output, _ = taps_lib.observe(teacher, frozen['teacher'], images, taps)
  return members_of(heads, frozen['heads'], output, taps)


def members_of(
    heads: nn.Module, variables: Any, output: Output, taps: Sequence[str]
) -> dict[str, jax.Array]:
  """Computes `cohort_logits` from an output of the teacher that has the features at `taps`."""
  logits: Any = heads.apply(variables, {tap: output.features[tap] for tap in taps})
  members = {**{tap: logits[tap] for tap in taps}, FINAL: output.logits}
  return {name: jax.lax.stop_gradient(z) for name, z in members.items()}


def make_teach(
    taught_by: str, teacher: nn.Module, teacher_taps: Sequence[str], heads: nn.Module,
    taps: Sequence[str],
) -> Teach:
  """Returns the function that computes the teacher signal of a method.

  It applies the teacher once, in evaluation mode, and stops gradients.

  Args:
    taught_by: 'labels', 'teacher' or 'cohort'; see `kdih.distillation.method.Method`.
    teacher: the teacher's module.
    teacher_taps: the taps of the teacher that methods read.
    heads: the module of the heads.
    taps: the taps that carry a head.
  """
  if taught_by == 'labels':
    return lambda frozen, images: TeacherSignal()
  carrying = tuple(taps) if taught_by == 'cohort' else ()

  def teach(frozen, images):
    output, _ = taps_lib.observe(
        teacher, frozen['teacher'], images, tuple(dict.fromkeys((*teacher_taps, *carrying))))
    members = None
    if taught_by == 'cohort':
      logits = members_of(heads, frozen['heads'], output, carrying)
      members = jnp.stack(list(logits.values()), axis=1)
    return jax.lax.stop_gradient(TeacherSignal(
        logits=output.logits,
        features=OrderedDict((tap, output.features[tap]) for tap in teacher_taps),
        preactivations=output.preactivations, embedding=output.embedding, members=members))

  return teach
