"""From stored pixels to what a model sees: crop, flip, normalise, inside the compiled step."""
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

PAD_MODES = {'zeros': 'constant', 'reflect': 'reflect'}


def augment(
    image: jax.Array, key: jax.Array, *, padding: int, padding_mode: str, flip: bool
) -> jax.Array:
  """A random crop of the padded `image` [height, width, channels], perhaps mirrored."""
  crop_key, flip_key = jax.random.split(key)
  if padding:
    border = (padding, padding)
    padded = jnp.pad(image, (border, border, (0, 0)), mode=PAD_MODES[padding_mode])
    top, left = jax.random.randint(crop_key, (2,), 0, 2 * padding + 1)
    image = jax.lax.dynamic_slice(padded, (top, left, jnp.zeros_like(top)), image.shape)
  if flip:
    image = jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)
  return image


def make_preprocess(
    *, mean: Sequence[float], std: Sequence[float], padding: int, padding_mode: str, flip: bool
) -> Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array]:
  """Returns `preprocess(images, index, key)`.

  It takes uint8 [batch, height, width, channels] and int32 [batch], and gives float32 images of
  the same shape, `(image / 255 - mean) / std`. With a `key` they are augmented first, each by a
  key of its own that depends on `key` and its index alone: the same on any number of devices.
  """
  shift, scale = (np.asarray(x, np.float32).reshape(1, 1, 1, -1) for x in (mean, std))

  def preprocess(images: jax.Array, index: jax.Array, key: jax.Array | None) -> jax.Array:
    if key is not None:
      keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
      images = jax.vmap(lambda image, key: augment(
          image, key, padding=padding, padding_mode=padding_mode, flip=flip))(images, keys)
    return (images.astype(jnp.float32) / 255.0 - shift) / scale

  return preprocess
