"""The views of an image under the augmentation: their numbers, their pixels, and fixed ones."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdih.data import augment

KEY, IMAGES = jax.random.key(3), np.random.default_rng(0).integers(0, 256, (16, 5, 6, 3), np.uint8)
INDEX = np.arange(16, dtype=np.int32) * 7


def made(padding=2, padding_mode='zeros', flip=True, **changes):
  return augment.make_preprocess(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25), padding=padding,
                                 padding_mode=padding_mode, flip=flip, **changes)


def drawn_at_once(image, key, preprocess):
  """Crop and flip with the numbers drawn in the same breath, as runs have done from the first."""
  crop_key, flip_key = jax.random.split(key)
  side = 2 * preprocess.padding + 1
  if preprocess.padding:
    border = (preprocess.padding,) * 2
    mode = augment.PAD_MODES[preprocess.padding_mode]
    padded = jnp.pad(image, (border, border, (0, 0)), mode=mode)
    top, left = jax.random.randint(crop_key, (2,), 0, side)
    image = jax.lax.dynamic_slice(padded, (top, left, jnp.zeros_like(top)), image.shape)
  if preprocess.flip:
    image = jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)
  return image


@pytest.mark.parametrize('padding, mode, flip', [(2, 'zeros', True), (0, 'zeros', True)])
def test_images_are_bit_for_bit_those_of_a_draw_at_once(padding, mode, flip):
  preprocess = made(padding, mode, flip)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, INDEX)
  expected = jax.jit(jax.vmap(lambda image, key: drawn_at_once(image, key, preprocess)))(
      IMAGES, keys)
  np.testing.assert_array_equal(jax.jit(preprocess)(IMAGES, INDEX, KEY),
                                jax.jit(preprocess)(expected, INDEX, None))


def test_a_view_is_the_crop_and_flip_that_its_number_says():
  preprocess = made()
  padded = np.pad(IMAGES[0], ((2, 2), (2, 2), (0, 0)))
  where = {0: (0, 0, 1), 1: (0, 0, -1), 9: (0, 4, -1), 10: (1, 0, 1), 24: (2, 2, 1),
           49: (4, 4, -1)}
  crops = [padded[top:top + 5, left:left + 6][:, ::step] for top, left, step in where.values()]
  found = jax.jit(preprocess.view)(np.repeat(IMAGES[:1], 6, 0), np.array(list(where)))
  np.testing.assert_array_equal(found, jax.jit(preprocess.normalise)(np.stack(crops)))


@pytest.mark.parametrize('padding, flip, count', [(4, True, 162), (1, False, 9), (0, False, 1)])
def test_the_number_of_views(padding, flip, count):
  preprocess = made(padding, flip=flip)
  slots = np.asarray(jax.jit(preprocess.draw)(np.arange(4000, dtype=np.int32), KEY))
  assert preprocess.num_views == preprocess.num_slots == count
  assert set(slots) == set(range(count))


@pytest.mark.slow
def test_fixed_views_are_different_ones_that_depend_on_the_image_and_the_seed_alone():
  preprocess = made(fixed_views=5)
  slots = np.tile(np.arange(5), 16)
  numbers, other = (np.asarray(jax.jit(p.number)(np.repeat(INDEX, 5), slots)).reshape(16, 5)
                    for p in (preprocess, made(fixed_views=5, seed=1)))
  assert all(len(set(row)) == 5 for row in numbers) and numbers.max() < 50
  assert len({tuple(row) for row in numbers}) == 16 and (numbers != other).any()
  drawn = np.asarray(jax.jit(preprocess.draw)(INDEX, KEY))
  expected = jax.jit(preprocess.view)(IMAGES, numbers[np.arange(16), drawn])
  np.testing.assert_array_equal(jax.jit(preprocess)(IMAGES, INDEX, KEY), expected)
  assert preprocess.num_slots == 5
