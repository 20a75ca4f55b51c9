"""From stored pixels to what a model sees: crop, flip, normalise, inside the compiled step."""
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
  import ml_collections


# As numpy calls them, by `choices.PADDING_MODES`.
PAD_MODES = {'zeros': 'constant', 'reflect': 'reflect'}


@dataclasses.dataclass(frozen=True)
class Preprocess:
  """Makes of uint8 images what a model sees; see `make_preprocess`.

  The augmentation shows an image in `num_views` ways: the number of a view is
  (top * (2 padding + 1) + left) * 2 + flipped, or without the flip top * (2 padding + 1) + left.

  Attributes:
    mean: per channel, of images scaled to [0, 1].
    std: likewise.
    padding: pixels on each side, of which a crop takes away as many again.
    padding_mode: one of `choices.PADDING_MODES`.
    flip: mirror every second image.
    fixed_views: draw from so many views of each image, always the same ones; 0 from all.
    seed: of the choice of these.
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
    """In how many ways the augmentation can show an image."""
    return self._side**2 * (2 if self.flip else 1)

  @property
  def num_slots(self) -> int:
    """How many of them are drawn from."""
    return self.fixed_views or self.num_views

  @property
  def _side(self) -> int:
    return 2 * self.padding + 1

  def __call__(self, images: jax.Array, index: jax.Array, key: jax.Array | None) -> jax.Array:
    """Normalised images [batch, height, width, channels], with a `key` augmented ones.

    Args:
      images: uint8 [batch, height, width, channels].
      index: int32 [batch], the images' numbers in their split.
      key: for the step; see `draw`.
    """
    if key is None:
      return self.normalise(images)
    return self.view(images, self.number(index, self.draw(index, key)))

  def draw(self, index: jax.Array, key: jax.Array) -> jax.Array:
    """The slot, int32 [batch], in which each image is seen: below `num_slots`.

    It depends on `key` and the image's index alone: the same on any number of devices.
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
    """The number of the view, int32 [batch], that a slot of each image shows."""
    if not self.fixed_views:
      return slot
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(self.seed), index)
    chosen = jax.vmap(lambda key: jax.random.permutation(key, self.num_views))(keys)
    return jnp.take_along_axis(chosen, slot[:, None], 1)[:, 0]

  def view(self, images: jax.Array, number: jax.Array) -> jax.Array:
    """Normalised views [batch, height, width, channels] of uint8 images by their number."""
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
    """`(image / 255 - mean) / std` in float32."""
    shift, scale = (np.asarray(x, np.float32).reshape(1, 1, 1, -1) for x in (self.mean, self.std))
    return (images.astype(jnp.float32) / 255.0 - shift) / scale


def make_preprocess(
    *, mean: Sequence[float], std: Sequence[float], padding: int, padding_mode: str, flip: bool,
    fixed_views: int = 0, seed: int = 0,
) -> Preprocess:
  """Returns `preprocess(images, index, key)`; the arguments are the fields of `Preprocess`.

  It takes uint8 [batch, height, width, channels] and int32 [batch], and gives float32 images of
  the same shape, `(image / 255 - mean) / std`. With a `key` they are augmented first, each by a
  key of its own that depends on `key` and its index alone: the same on any number of devices.
  """
  return Preprocess(tuple(mean), tuple(std), padding, padding_mode, flip, fixed_views, seed)


def of_config(config: 'ml_collections.ConfigDict', fixed_views: int = 0) -> Preprocess:
  """As `config.data` says, with all views or so many fixed ones of each image.

  Which these are depends on the image and `config.data.order_seed` alone, so that students of all
  seeds see the same.
  """
  fields = {key: config.data[key] for key in ('mean', 'std', 'padding', 'padding_mode', 'flip')}
  return make_preprocess(
      **fields, fixed_views=fixed_views, seed=max(config.data.order_seed, 0))
