"""Augmentation: its views, their numbers and pixels, and what it depends on."""
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdih.data import augment
from tests.helpers.made_data import pixels
from tests.helpers.slow import slow

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


def test_a_view_is_the_crop_and_flip_of_its_number():
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


@functools.cache
def compiled(mean, std, padding=2, padding_mode='zeros', flip=True):
  return jax.jit(augment.make_preprocess(
      mean=mean, std=std, padding=padding, padding_mode=padding_mode, flip=flip))


def augmented(images, key, index=None, **options):
  """The pixels, 0 to 255, of augmented images."""
  index = np.arange(len(images)) if index is None else index
  return np.rint(compiled((10 / 255,), (1 / 255,), **options)(images, index, key)) + 10


def windows(image, padding, mode, flip):
  """Every crop of the padded 5x6 image, mirrored ones too if they flip, as bytes."""
  padded = np.pad(image.astype(np.float32), ((padding,) * 2, (padding,) * 2, (0, 0)), mode)
  corners = itertools.product(range(2 * padding + 1), repeat=2)
  crops = [padded[top:top + 5, left:left + 6] for top, left in corners]
  return {crop[:, ::step].tobytes() for crop in crops for step in ((1, -1) if flip else (1,))}


def test_without_a_key_images_are_only_normalised():
  mean, std, images = (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261), pixels(0, 2, 4, 5, 3)
  found = compiled(mean, std)(images, np.arange(2), None)
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, (images / 255 - mean) / std, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('padding, mode, flip, count', [
    slow(2, 'zeros', True, 50), (2, 'zeros', False, 25), slow(2, 'reflect', True, 50),
    (1, 'reflect', False, 9), (0, 'zeros', True, 2)])
def test_augmentation_gives_just_the_windows_of_the_padded_image(padding, mode, flip, count):
  image = np.arange(1, 61, dtype=np.uint8).reshape(5, 6, 2)
  possible = windows(image, padding, {'zeros': 'constant'}.get(mode, mode), flip)
  assert len(possible) == count
  found = augmented(np.stack([image] * 600), jax.random.key(1), padding=padding,
                    padding_mode=mode, flip=flip)
  assert {crop.tobytes() for crop in found} == possible


def test_an_augmentation_depends_on_the_key_and_the_index_and_not_on_the_batch():
  images, key, some = pixels(0, 8, 5, 5, 3), jax.random.key(5), np.array([6, 1, 3])
  whole = augmented(images, key)
  np.testing.assert_array_equal(augmented(images[some], key, some), whole[some])
  assert not np.array_equal(augmented(images, jax.random.key(6)), whole)
  assert not np.array_equal(augmented(images, key, np.arange(8) + 8), whole)
