"""A weighted sum of other methods, such as DIH with a feature method."""
from collections.abc import Sequence
from typing import Annotated

from flax import linen as nn

from kdih.config.values import Many, Number
from kdih.distillation import method, options
from kdih.distillation.method import FeatureMethod


class Method(method.Method):
  """sum_i weights_i * loss_i; a feature method brings its weighted term, without the labels.

  What parts prepare is prepared first, by the plain sum of those losses. Of `fitnets` in two phases
  the hint is prepared, and stays as the term.

  Attributes:
    methods: names of entries of `config.methods`.
    weights: one for each.
  """

  methods: options.Names
  weights: Annotated[tuple[float, ...], Many(Number(0, 1e9, open_low=True), least=1)]

  @nn.nowrap
  def check(self):
    """See `kdih.distillation.method.Method`."""
    if len(self.methods) < 2 or len(self.methods) != len(self.weights):
      raise ValueError(f'methods: has {len(self.methods)} names and weights {len(self.weights)} '
                       'numbers; name two methods or more, and give a weight for each')
    for name, part in zip(self.methods, self._made(), strict=True):
      if part.assistants or isinstance(part, Method):
        raise ValueError(f'methods: {name!r} has assistants or parts of its own and cannot be '
                         'summed; choose another')
    if all(isinstance(part, FeatureMethod) for part in self._made()):
      raise ValueError('methods: none of them listens to the labels; name ce, kd or dih too')

  @nn.nowrap
  def _made(self):
    return [self.context.method(name) for name in self.methods]

  @property
  def taught_by(self):
    """The most that a part asks for."""
    return max((part.taught_by for part in self._made()), key=('labels', 'teacher', 'cohort').index)

  @property
  def prepares(self):
    """Whether a part does."""
    return any(part.prepares for part in self._made())

  @property
  def needs_train_labels(self):
    """Whether a part does."""
    return any(part.needs_train_labels for part in self._made())

  @property
  def couples(self):
    """Whether a part does."""
    return any(part.couples for part in self._made())

  def setup(self):
    """Makes the parts."""
    self.parts = self._made()

  def prepare(self, lesson):
    """Returns each part's terms as 'PART/TERM'; see `kdih.distillation.method.Method`."""
    return _joined([(name, 1.0, part.prepare(lesson))
                    for name, part in zip(self.methods, self.parts, strict=True) if part.prepares])

  def __call__(self, lesson):
    """Returns each part's terms as 'PART/TERM'; see `kdih.distillation.method.Method`."""
    return _joined([
        (name, weight, {'feature': part.weight * part.term(lesson)}
         if isinstance(part, FeatureMethod) else part(lesson))
        for name, weight, part in zip(self.methods, self.weights, self.parts, strict=True)])


def _joined(parts: Sequence[tuple[str, float, method.Terms]]) -> method.Terms:
  """Returns weighted terms as 'PART/TERM'; those of a part that is named twice add up."""
  joined: method.Terms = {}
  for name, weight, terms in parts:
    for term, value in terms.items():
      key = f'{name}/{term}'
      joined[key] = joined[key] + weight * value if key in joined else weight * value
  return joined
