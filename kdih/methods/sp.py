"""SP: similarity-preserving distillation (Tung and Mori, ICCV 2019, arXiv 1907.09682)."""
import jax

from kdih.distillation import features as features_lib
from kdih.distillation.method import FeatureMethod


class Method(FeatureMethod):
  """Matches the similarities of the images of the batch, at the deepest tap.

      term = mean_ij (G^S_ij - G^T_ij)^2,   G_i = (F F')_i / |(F F')_i|

  over all pairs of images i and j of the global batch, where F, [batch, H * W * C], are the
  deepest features and G_i is a row. Student and teacher may have different numbers of taps, with
  features of any shape.

  Source: Tung and Mori, ICCV 2019, arXiv 1907.09682, section 3.

  Attributes:
    cross_entropy: weight of the labels, at least 0.
    weight: weight of the term, above 0.
  """

  couples = True

  def term(self, lesson):
    student, teacher = (
        _similarities(lesson.gather(_deepest(output.features, role, setting)))
        for output, role, setting in ((lesson.student, 'student', 'taps'),
                                      (lesson.teacher, 'teacher', 'teacher_taps')))
    return ((student - teacher)**2).mean()


def _deepest(features, role: str, setting: str) -> jax.Array:
  """Returns the deepest feature, [batch, H * W * C].

  Raises:
    ValueError: there are no features.
  """
  if not features:
    raise ValueError(f'the {role} has no taps; name one with config.student.{setting}')
  feature = list(features.values())[-1]
  return feature.reshape(len(feature), -1)


def _similarities(flat: jax.Array) -> jax.Array:
  """Returns G, [batch, batch], for flat features [batch, H * W * C]."""
  return features_lib.unit(features_lib.products(flat, flat))
