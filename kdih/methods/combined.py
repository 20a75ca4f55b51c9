"""A weighted sum of other methods, such as DIH and a feature method."""
from collections.abc import Sequence
from typing import Annotated

from flax import linen as nn

from kdih.config.values import Many, Number
from kdih.distillation import method, options
from kdih.distillation.method import FeatureMethod


class Method(method.Method):
  """Teaches by a weighted sum of the losses of other entries of `config.methods`.

      L = sum_i weights_i L_i

  A feature method contributes L_i = weight * term, without its cross-entropy; `fitnets` with two
  phases contributes its hint. If parts have a preparation, the sum of their preparation losses,
  unweighted, is trained first.

  The terms of the loss are named 'PART/TERM'.

  Attributes:
    methods: names of two or more entries of `config.methods`.
    weights: a weight above 0 for each of them.
  """

  methods: options.Names
  weights: Annotated[tuple[float, ...], Many(Number(0, 1e9, open_low=True), least=1)]

  @nn.nowrap
  def check(self):
    if len(self.methods) < 2 or len(self.methods) != len(self.weights):
      raise ValueError(f'methods: has {len(self.methods)} names and weights {len(self.weights)} '
                       'numbers; name two methods or more, and give a weight for each')
    for name, part in zip(self.methods, self._create_parts(), strict=True):
      if part.assistants or isinstance(part, Method):
        raise ValueError(f'methods: {name!r} has assistants or parts of its own and cannot be '
                         'summed; choose another')
    if all(isinstance(part, FeatureMethod) for part in self._create_parts()):
      raise ValueError('methods: all of them compare features, and none learns from the labels; '
                       'add ce, kd or dih')

  @nn.nowrap
  def _create_parts(self):
    return [self.context.method(name) for name in self.methods]

  @property
  def taught_by(self):
    """Returns 'cohort' if a part needs it, else 'teacher' if a part needs it, else 'labels'."""
    return max((part.taught_by for part in self._create_parts()),
               key=('labels', 'teacher', 'cohort').index)

  @property
  def prepares(self):
    """Returns whether any part has a preparation."""
    return any(part.prepares for part in self._create_parts())

  @property
  def needs_train_labels(self):
    """Returns whether any part reads `Lesson.train_labels`."""
    return any(part.needs_train_labels for part in self._create_parts())

  @property
  def couples(self):
    """Returns whether any part compares the images of a batch with each other."""
    return any(part.couples for part in self._create_parts())

  def setup(self):
    """Creates the parts."""
    self.parts = self._create_parts()

  def prepare(self, lesson):
    return _joined([(name, 1.0, part.prepare(lesson))
                    for name, part in zip(self.methods, self.parts, strict=True) if part.prepares])

  def __call__(self, lesson):
    return _joined([
        (name, weight, {'feature': part.weight * part.term(lesson)}
         if isinstance(part, FeatureMethod) else part(lesson))
        for name, weight, part in zip(self.methods, self.weights, self.parts, strict=True)])


def _joined(parts: Sequence[tuple[str, float, method.Terms]]) -> method.Terms:
  """Returns the weighted terms by the name 'PART/TERM'; equal names are added up."""
  joined: method.Terms = {}
  for name, weight, terms in parts:
    for term, value in terms.items():
      key = f'{name}/{term}'
      joined[key] = joined[key] + weight * value if key in joined else weight * value
  return joined
