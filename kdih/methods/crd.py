"""Contrastive representation distillation (Tian et al., 2020, arXiv 1910.10699, section 3)."""
import math
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import linen as nn

from kdih.config.values import Number, Whole
from kdih.distillation import features, options
from kdih.distillation.method import FeatureMethod
from kdih.models import layers

_EPSILON = 1e-7


class Method(FeatureMethod):
  """Tells an image's embedding from those of images of other classes, across the two models.

  Embeddings of student and teacher become v^S and v^T, linear and of length 1, which banks M^S
  and M^T keep of every train image. With K negatives, N images that are trained with and

      s_ij = exp(M^T_j . v^S_i / T) / Z_S,   t_ij = exp(M^S_j . v^T_i / T) / Z_T

  where j is image i itself (0) or a negative (1 .. K), the term is l(s) + l(t) of

      l(x)_i = -log(x_i0 / (x_i0 + K/N + 1e-7)) - sum_j log(K/N / (x_ij + K/N + 1e-7)).

  Z is N times the mean exponential in the first batch, and constant from then on. After every
  batch M_i becomes momentum M_i + (1 - momentum) v_i, of length 1 again; of an image that comes
  twice in a batch, the first counts. The authors' code draws negatives without replacement where
  there are enough of them; here they are always drawn with.

  Scores are taken with the whole bank, [batch, train split], and counted as often as an image was
  drawn: so the negatives' embeddings, [batch, K, width], never have to be laid out. All of it is
  computed in logarithms, log Z included, so that a low T makes nothing infinite.

  Attributes:
    width: of v.
    negatives: K, for every image; the train split needs a second class to draw them from.
    temperature: T.
    momentum: of the banks, in [0, 1).
  """

  needs_train_labels = True

  width: options.Width
  negatives: Annotated[int, Whole(1, 2**24)]
  temperature: options.Temperature
  momentum: Annotated[float, Number(0, 1, open_high=True)]

  @nn.compact
  def term(self, lesson):
    """[batch]; see `kdih.distillation.method.FeatureMethod`."""
    student, teacher = (
        features.unit(layers.dense(embedding.shape[-1], self.width, name=side)(embedding))
        for side, embedding in zip(('student', 'teacher'), features.embeddings(lesson),
                                   strict=True))
    counts = count(draw_negatives(lesson.key, lesson.index, lesson.train_labels, self.negatives),
                   lesson.train_labels.size)
    return (self._contrast('teacher', student, teacher, counts, lesson)
            + self._contrast('student', teacher, student, counts, lesson))

  def _contrast(self, side, anchors, own, counts, lesson):
    """l, [batch], of `anchors` against the bank of `side`, into which `own` then goes."""
    bank = self.variable('memory', f'{side}_bank', self._initial_bank, lesson.train_labels.size)
    # -inf until the first batch.
    kept = self.variable('memory', f'{side}_log_z', jnp.full, (), -jnp.inf, jnp.float32)
    drawn = features.products(anchors, bank.value) / self.temperature
    itself = (anchors * bank.value[lesson.index]).sum(-1) / self.temperature
    num_images = (lesson.train_labels >= 0).sum()
    log_mean = self._log_mean(*jax.lax.stop_gradient((drawn, itself)), counts, lesson)
    log_z = jnp.where(kept.value > -jnp.inf, kept.value, jnp.log(num_images) + log_mean)
    if not self.is_initializing():
      kept.value = log_z
      bank.value = update(bank.value, lesson.gather(lesson.index),
                          lesson.gather(jax.lax.stop_gradient(own)), self.momentum)
    noise = self.negatives / num_images
    log_rest = jnp.log(noise + _EPSILON)
    right = -jax.nn.softplus(log_rest - (itself - log_z))
    # log(K/N) - log(x + K/N + 1e-7), as numbers so small that thousands add up without rounding.
    wrong = -jnp.log1p(_EPSILON / noise) - jax.nn.softplus(drawn - log_z - log_rest)
    return -right - (counts * wrong).sum(-1)

  @nn.nowrap
  def _log_mean(self, drawn, itself, counts, lesson):
    """log of the mean exponential over all images of all devices and their drawn ones, scalar."""
    own = jnp.logaddexp(jax.nn.logsumexp(drawn, axis=-1, b=counts), itself)
    everyone = lesson.gather(own)
    return jax.nn.logsumexp(everyone) - math.log(everyone.size * (self.negatives + 1))

  def _initial_bank(self, size):
    bound = 1 / math.sqrt(self.width / 3)
    return jax.random.uniform(
        self.make_rng('params'), (size, self.width), jnp.float32, -bound, bound)


def draw_negatives(
    key: jax.Array, index: jax.Array, train_labels: jax.Array, number: int
) -> jax.Array:
  """Draws images of other classes, uniformly and with replacement: int32 [batch, number].

  Args:
    key: for the numbers; what is drawn for an image depends on it and the image alone.
    index: int32 [batch], the images.
    train_labels: int32 [size of the train split], -1 for images that are never drawn; some have
      another class.
    number: of images to draw for each of the batch.
  """
  order = jnp.argsort(train_labels)
  by_class = train_labels[order]
  begin = jnp.searchsorted(by_class, 0)

  def draw(image):  # Counts positions in `order` from `begin`, and skips the image's own class.
    start, stop = (jnp.searchsorted(by_class, train_labels[image], side=side)
                   for side in ('left', 'right'))
    drawn = begin + jax.random.randint(
        jax.random.fold_in(key, image), (number,), 0, by_class.size - begin - (stop - start))
    return order[jnp.where(drawn < start, drawn, drawn + stop - start)]

  return jax.vmap(draw)(index)


def count(drawn: jax.Array, size: int) -> jax.Array:
  """How often each number below `size` is in each row: int [batch, n] to float [batch, size]."""
  rows = jnp.arange(len(drawn))[:, None]
  # Whole numbers add up to the same in any order: deterministic on a GPU, and fast.
  return jnp.zeros((len(drawn), size), jnp.int32).at[rows, drawn].add(1).astype(jnp.float32)


def update(bank: jax.Array, index: jax.Array, new: jax.Array, momentum: float) -> jax.Array:
  """The bank, [size, width], after its rows `index` took in `new`, [batch, width].

  Row i becomes momentum * row + (1 - momentum) * new, over its length. Where a number is twice in
  `index`, the first counts.
  """
  rows = features.unit(momentum * bank[index] + (1 - momentum) * new)
  place = jnp.arange(len(index))
  first = (index[:, None] == index[None]).argmax(1) == place
  beyond = len(bank) + place  # Out of bounds, and so not written.
  return bank.at[jnp.where(first, index, beyond)].set(rows, mode='drop', unique_indices=True)
