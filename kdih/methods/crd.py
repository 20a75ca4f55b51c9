"""CRD: contrastive representation distillation (Tian et al., ICLR 2020, arXiv 1910.10699)."""
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
  """Contrasts an image's embedding with embeddings of images of other classes, across both models.

  A trained linear map and a division by the norm turn the embeddings of student and teacher into
  v^S and v^T. The memory banks M^S and M^T keep v^S and v^T of every train image. With K negatives
  and N train images, let

      s_ij = exp(M^T_j . v^S_i / T) / Z_S,   t_ij = exp(M^S_j . v^T_i / T) / Z_T

  where j = 0 is image i itself and j = 1 .. K are its negatives. Then

      term_i = l(s)_i + l(t)_i,
      l(x)_i = -log(x_i0 / (x_i0 + K/N + 1e-7)) - sum_j log((K/N) / (x_ij + K/N + 1e-7))

  Z is N times the mean of the exponentials in the first batch, and constant afterwards. After
  every batch M_i becomes momentum M_i + (1 - momentum) v_i, divided by its norm; if an image is in
  a batch twice, its first v_i is used. Negatives are drawn with replacement; the authors' code
  draws them without replacement if there are enough.

  Scores are computed with the whole bank, [batch, train split], and weighted with how often each
  image was drawn, because this needs less memory than gathering the negatives' embeddings,
  [batch, K, width]. Everything is computed in logarithms, including log Z, to stay finite at a low
  temperature.

  Source: Tian, Krishnan and Isola, ICLR 2020, arXiv 1910.10699, section 3, and RepDistiller.

  Attributes:
    width: width of v.
    negatives: K. The train split needs at least two classes.
    temperature: T.
    momentum: momentum of the banks, in [0, 1).
    cross_entropy: weight of the labels, at least 0.
    weight: weight of the term, above 0.
  """

  needs_train_labels = True

  width: options.Width
  negatives: Annotated[int, Whole(1, 2**24)]
  temperature: options.Temperature
  momentum: Annotated[float, Number(0, 1, open_high=True)]

  @nn.compact
  def term(self, lesson):
    student, teacher = (
        features.unit(layers.dense(embedding.shape[-1], self.width, name=side)(embedding))
        for side, embedding in zip(('student', 'teacher'), features.embeddings(lesson),
                                   strict=True))
    counts = count(draw_negatives(lesson.key, lesson.index, lesson.train_labels, self.negatives),
                   lesson.train_labels.size)
    return (self._contrast('teacher', student, teacher, counts, lesson)
            + self._contrast('student', teacher, student, counts, lesson))

  def _contrast(self, side, anchors, own, counts, lesson):
    """Returns l, [batch], of `anchors` against the bank of `side`; updates the bank with `own`."""
    bank = self.variable('memory', f'{side}_bank', self._initial_bank, lesson.train_labels.size)
    # log Z is -inf until the first batch has set it.
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
    # log(K/N) - log(x + K/N + 1e-7), written so that thousands of tiny numbers add up exactly.
    wrong = -jnp.log1p(_EPSILON / noise) - jax.nn.softplus(drawn - log_z - log_rest)
    return -right - (counts * wrong).sum(-1)

  @nn.nowrap
  def _log_mean(self, drawn, itself, counts, lesson):
    """Returns the log of the mean exponential over the global batch and its negatives, a scalar."""
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
  """Returns images of other classes, uniform and with replacement, int32 [batch, number].

  Args:
    key: key for random numbers; the draws for an image depend on the key and on the image alone.
    index: int32 [batch], the images to draw negatives for.
    train_labels: int32 [size of the train split], -1 for images that are never drawn. At least
      two classes are needed.
    number: number of negatives for each image.
  """
  order = jnp.argsort(train_labels)
  by_class = train_labels[order]
  begin = jnp.searchsorted(by_class, 0)

  def draw(image):  # Draws positions in `order` from `begin` on, skipping the image's own class.
    start, stop = (jnp.searchsorted(by_class, train_labels[image], side=side)
                   for side in ('left', 'right'))
    drawn = begin + jax.random.randint(
        jax.random.fold_in(key, image), (number,), 0, by_class.size - begin - (stop - start))
    return order[jnp.where(drawn < start, drawn, drawn + stop - start)]

  return jax.vmap(draw)(index)


def count(drawn: jax.Array, size: int) -> jax.Array:
  """Returns how often each of 0 .. size - 1 is in each row of int [batch, n], [batch, size]."""
  rows = jnp.arange(len(drawn))[:, None]
  # A sum of integers does not depend on its order, and is therefore deterministic on a GPU.
  return jnp.zeros((len(drawn), size), jnp.int32).at[rows, drawn].add(1).astype(jnp.float32)


def update(bank: jax.Array, index: jax.Array, new: jax.Array, momentum: float) -> jax.Array:
  """Returns the bank, [size, width], with its rows `index` moved towards `new`, [batch, width].

  A row becomes momentum * row + (1 - momentum) * new, divided by its norm. If `index` holds a row
  twice, the first one is used.
  """
  rows = features.unit(momentum * bank[index] + (1 - momentum) * new)
  place = jnp.arange(len(index))
  first = (index[:, None] == index[None]).argmax(1) == place
  beyond = len(bank) + place  # Out of bounds, and therefore not written.
  return bank.at[jnp.where(first, index, beyond)].set(rows, mode='drop', unique_indices=True)
