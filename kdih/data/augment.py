"""Preprocessing of uint8 images for a model: crop, flip and normalise, in the compiled step."""
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
  import ml_collections


# numpy's names of `choices.PADDING_MODES`.
PAD_MODES = {'zeros': 'constant', 'reflect': 'reflect'}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocess:
  """Normalisation of uint8 images, after a random crop and flip if there is a key.

  An image has `num_views` views. The number of a view is (top * (2 padding + 1) + left) * 2 +
  flipped, or top * (2 padding + 1) + left if images are not flipped.

  Attributes:
    mean: of each channel, for images scaled to [0, 1].
    std: of each channel, for images scaled to [0, 1].
    padding: pixels added on each side before a crop of the image's own size.
    padding_mode: one of `choices.PADDING_MODES`.
    flip: whether to mirror an image with probability 1/2.
    fixed_views: the number of views of each image to draw from; 0 for all views.
    seed: the seed by which the fixed views are chosen.
  """

  mean: tuple[float, ...]
  std: tuple[float, ...]
  padding: int
  padding_mode: str
  flip: bool
  fixed_views: int = 0
  seed: int = 0

  @property
  def num_views(self) -> int:
    """Returns the number of different views of an image."""
    return self._side**2 * (2 if self.flip else 1)

  @property
  def num_slots(self) -> int:
    """Returns the number of views of each image that are drawn from."""
    return self.fixed_views or self.num_views

  @property
  def _side(self) -> int:
    return 2 * self.padding + 1

  def __call__(self, images: jax.Array, index: jax.Array, key: jax.Array | None) -> jax.Array:
    """Returns normalised float32 images [batch, height, width, channels].

    Args:
      images: uint8 [batch, height, width, channels].
      index: int32 [batch], the images' numbers in their split.
      key: the step's key, by which views are drawn; see `draw`. None for no augmentation.
    """
    if key is None:
      return self.normalise(images)
    return self.view(images, self.number(index, self.draw(index, key)))

  def draw(self, index: jax.Array, key: jax.Array) -> jax.Array:
    """Draws a slot below `num_slots` for each image, int32 [batch].

    It depends on `key` and the image's index alone: it is the same on any number of devices.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
    return jax.vmap(self._draw_one)(keys)

  def _draw_one(self, key: jax.Array) -> jax.Array:
    if self.fixed_views:
      return jax.random.randint(key, (), 0, self.fixed_views)
    crop_key, flip_key = jax.random.split(key)
    number = jnp.zeros((), jnp.int32)
    if self.padding:
      top, left = jax.random.randint(crop_key, (2,), 0, self._side)
      number = top * self._side + left
    if self.flip:
      number = number * 2 + jax.random.bernoulli(flip_key)
    return number

  def number(self, index: jax.Array, slot: jax.Array) -> jax.Array:
    """Returns the number of the view, int32 [batch], in a slot of each image."""
    if not self.fixed_views:
      return slot
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(self.seed), index)
    chosen = jax.vmap(lambda key: jax.random.permutation(key, self.num_views))(keys)
    return jnp.take_along_axis(chosen, slot[:, None], 1)[:, 0]

  def view(self, images: jax.Array, number: jax.Array) -> jax.Array:
    """Returns normalised views [batch, height, width, channels] of uint8 images by number."""
    return self.normalise(jax.vmap(self._view_one)(images, number))

  def _view_one(self, image: jax.Array, number: jax.Array) -> jax.Array:
    corner, flipped = jnp.divmod(number, 2) if self.flip else (number, None)
    if self.padding:
      border = (self.padding, self.padding)
      padded = jnp.pad(image, (border, border, (0, 0)), mode=PAD_MODES[self.padding_mode])
      top, left = jnp.divmod(corner, self._side)
      image = jax.lax.dynamic_slice(padded, (top, left, jnp.zeros_like(top)), image.shape)
    if flipped is not None:
      image = jnp.where(flipped == 1, image[:, ::-1], image)
    return image

  def normalise(self, images: jax.Array) -> jax.Array:
    """Returns `(image / 255 - mean) / std` in float32."""
    shift, scale = (np.asarray(x, np.float32).reshape(1, 1, 1, -1) for x in (self.mean, self.std))
    return (images.astype(jnp.float32) / 255.0 - shift) / scale


def make_preprocess(
    *, mean: Sequence[float], std: Sequence[float], padding: int, padding_mode: str, flip: bool,
    fixed_views: int = 0, seed: int = 0,
) -> Preprocess:
  """Returns a `Preprocess`; mean and std may be any sequences."""
  return Preprocess(
      mean=tuple(mean), std=tuple(std), padding=padding, padding_mode=padding_mode, flip=flip,
      fixed_views=fixed_views, seed=seed)


def of_config(config: 'ml_collections.ConfigDict', fixed_views: int = 0) -> Preprocess:
  """Returns the `Preprocess` of `config.data`, with `fixed_views` views of each image or all.

  The choice of views depends on the image and on `config.data.order_seed` alone: it is the same for
  students of all seeds.
  """
  fields = {key: config.data[key] for key in ('mean', 'std', 'padding', 'padding_mode', 'flip')}
  return make_preprocess(
      **fields, fixed_views=fixed_views, seed=max(config.data.order_seed, 0))
