"""Similarity-preserving distillation (Tung and Mori, ICCV 2019, arXiv 1907.09682, section 3)."""
import jax

from kdih.distillation import features as features_lib
from kdih.distillation.method import FeatureMethod


class Method(FeatureMethod):
  """Which images of the batch are alike, at the deepest tap.

  With F, [batch, H * W * C], the deepest features of all images, and G = F F' whose rows are
  brought to length 1, the term is mean((G_S - G_T)^2) over the batch^2 entries. Student and
  teacher may have any number of taps, of any shape.
  """

  couples = True

  def term(self, lesson):
    """Scalar; see `kdih.distillation.method.FeatureMethod`."""
    student, teacher = (
        _similarities(lesson.gather(_deepest(output.features, role, setting)))
        for output, role, setting in ((lesson.student, 'student', 'taps'),
                                      (lesson.teacher, 'teacher', 'teacher_taps')))
    return ((student - teacher)**2).mean()


def _deepest(features, role: str, setting: str) -> jax.Array:
  """The deepest feature, flat; raises ValueError where there is none."""
  if not features:
    raise ValueError(f'the {role} has no taps; name one with config.student.{setting}')
  feature = list(features.values())[-1]
  return feature.reshape(len(feature), -1)


def _similarities(flat: jax.Array) -> jax.Array:
  """G, [batch, batch]."""
  return features_lib.unit(features_lib.products(flat, flat))
