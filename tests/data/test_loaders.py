"""Order, preprocessing, TFDS sources in both file formats, and the two loaders."""
import functools
import itertools
import subprocess
import sys

import jax
import numpy as np
import PIL.Image
import pytest

from kdih import errors
from kdih.data import augment, datasets, loaders, sampling, splits
from kdih.data.source import open_split
from tests.helpers.made_data import FORMATS, examples, make_config, message, pixels

SUBSET = np.array([3, 4, 8, 9, 11, 15, 16, 20, 21, 30], np.int32)
WITHOUT_TENSORFLOW = """
import sys
from kdih.config import fields
from kdih.data import datasets, loaders
from kdih.data.source import open_split
config = fields.base().data
config.update(name='small', data_dir=sys.argv[1])
loader = loaders.MemoryLoader(open_split(datasets.open_builder(config), 'train_split', config))
assert loader.resident['label'].shape == (40,) and 'tensorflow' not in sys.modules
"""


@pytest.fixture(scope='session')
def digits(tmp_path_factory):
  folder = str(tmp_path_factory.mktemp('digits'))
  datasets.prepare(datasets.open_builder(make_config(data_dir=folder)))
  return folder


def open_source(config):
  builder = datasets.open_builder(config)
  datasets.describe(builder, config)
  return open_split(builder, 'train_split', config)


def indices(*args):
  return [batch['index'] for batch in sampling.train_batches(*args)]


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


@pytest.mark.parametrize('batch_size', [1, 4, 5, 10, 32])
def test_every_epoch_shows_each_example_of_the_subset_once(batch_size):
  batches = indices(SUBSET, batch_size, 30, 0, -(-50 // batch_size))
  assert {batch.shape for batch in batches} == {(batch_size,)}
  assert {batch.dtype for batch in batches} == {np.dtype(np.int32)}
  epochs = np.concatenate(batches)[:50].reshape(5, 10)
  np.testing.assert_array_equal(np.sort(epochs), np.tile(SUBSET, (5, 1)))
  assert len({epoch.tobytes() for epoch in epochs}) == 5


@pytest.mark.parametrize('start', [1, 2, 7, 11])
def test_batches_depend_on_the_seed_and_not_on_where_the_run_starts(start):
  whole = indices(SUBSET, 4, 30, 0, 12)
  np.testing.assert_array_equal(indices(SUBSET, 4, 30, start, 12), whole[start:])
  assert not np.array_equal(indices(SUBSET, 4, 31, 0, 12), whole)


@pytest.mark.parametrize('batch_size, masks', [(4, [4, 4, 2]), (5, [5, 5]), (16, [10])])
def test_evaluation_shows_each_example_once_and_masks_the_filling(batch_size, masks):
  batches = list(sampling.eval_batches(SUBSET, batch_size))
  assert [batch['mask'].sum() for batch in batches] == masks
  assert {batch[key].shape for batch in batches for key in batch} == {(batch_size,)}
  index, mask = (np.concatenate([batch[key] for batch in batches]) for key in ('index', 'mask'))
  assert (index.dtype, mask.dtype) == (np.int32, np.float32)
  np.testing.assert_array_equal(index[mask == 1], SUBSET)
  assert set(index) == set(SUBSET) and set(mask) <= {0, 1}


@pytest.mark.parametrize('count, fraction, size', [(100, 0.1, 10), (1437, 0.1, 144), (50, 0.0, 0)])
def test_the_validation_split_is_disjoint_complete_and_seeded(count, fraction, size):
  train, held_out = splits.split_validation(count, fraction, 0)
  assert len(held_out) == size and train.dtype == held_out.dtype == np.int32
  np.testing.assert_array_equal(np.sort(np.concatenate([train, held_out])), np.arange(count))
  np.testing.assert_array_equal(splits.split_validation(count, fraction, 0)[1], held_out)
  assert (np.diff(train) > 0).all() and (np.diff(held_out) > 0).all()
  if size:
    assert not np.array_equal(splits.split_validation(count, fraction, 1)[1], held_out)


def test_without_a_key_images_are_only_normalised():
  mean, std, images = (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261), pixels(0, 2, 4, 5, 3)
  found = compiled(mean, std)(images, np.arange(2), None)
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, (images / 255 - mean) / std, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('padding, mode, flip, count', [
    (2, 'zeros', True, 50), (2, 'zeros', False, 25), (2, 'reflect', True, 50),
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


def test_digits_are_scikit_learns_every_fifth_one_for_the_test(digits):
  from sklearn import datasets
  expected, is_test = datasets.load_digits(), np.arange(1797) % 5 == 4
  for split, chosen in (('train', ~is_test), ('test', is_test)):
    source = open_source(make_config(data_dir=digits, train_split=split))
    images, labels = source.read(np.arange(len(source)))
    np.testing.assert_array_equal(labels, expected.target[chosen])
    np.testing.assert_allclose(images[..., 0] * (16 / 255), expected.images[chosen], atol=0.04)


@pytest.mark.parametrize('file_format', FORMATS)
@pytest.mark.parametrize('split, expected', [
    ('train', range(40)), ('test', range(40, 47)), ('train[10:20]', range(10, 20)),
    ('train[-3:]', range(37, 40)), ('train[25%:75%]', range(10, 30)),
    ('train[38:]+test[:2]', range(38, 42))])
def test_a_split_holds_what_was_written_in_any_order(small, file_format, split, expected):
  config = small(file_format, train_split=split)
  assert datasets.open_builder(config).info.splits['train'].num_shards == 3
  source = open_source(config)
  order = np.random.default_rng(0).permutation([*range(len(expected)), 0])
  images, labels = source.read(order)
  assert (len(source), images.dtype, labels.dtype) == (len(expected), np.uint8, np.int32)
  np.testing.assert_array_equal(images, [pixels(expected[i], 6, 8, 3) for i in order])
  np.testing.assert_array_equal(labels, [expected[i] % 3 for i in order])


@pytest.mark.parametrize('key, size, originals', [
    ('photo', 5, [pixels(0, 8, 12, 3)[:, 2:10], pixels(1, 12, 8, 3)[2:10], pixels(2, 10, 10, 3)]),
    ('grey', 3, [pixels(i, 6, 6, 1) for i in range(3)]),
    ('grey', 6, [pixels(i, 6, 6, 1) for i in range(3)])])
def test_images_are_resized_from_their_middle_square(small, key, size, originals):
  images, _ = open_source(small(image_key=key, image_size=size)).read(np.arange(3))
  assert images.shape == (3, size, size, originals[0].shape[-1])
  for image, original in zip(images, originals, strict=True):
    picture = PIL.Image.fromarray(original.squeeze())
    expected = np.asarray(picture.resize((size, size), PIL.Image.Resampling.BILINEAR), int)
    inside = slice(1, -1)  # At its edge, pixels outside the square count too.
    np.testing.assert_allclose(image.squeeze()[inside, inside], expected[inside, inside], atol=1)


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('origin', ['digits', *FORMATS])
def test_both_loaders_give_the_same_examples(small, digits, origin, training):
  source = open_source(make_config(data_dir=digits) if origin == 'digits' else small(origin))
  subset = np.arange(0, 40, 2, dtype=np.int32)
  batches = list(sampling.train_batches(subset, 8, 30, 2, 25) if training
                 else sampling.eval_batches(subset, 16))
  memory, streaming = (examples(loaders.make_loader(name, source), batches)
                       for name in ('memory', 'streaming'))
  for batch, one, other in zip(batches, memory, streaming, strict=True):
    assert one.keys() == other.keys() == {*batch, 'image', 'label'}
    np.testing.assert_array_equal(one['image'], source.read(batch['index'])[0])
    for key in one:
      np.testing.assert_array_equal(one[key], other[key])
      assert one[key].dtype == other[key].dtype


@pytest.mark.parametrize('name', ['memory', 'streaming'])
def test_no_batches_give_no_feeds(small, name):
  assert list(loaders.make_loader(name, open_source(small())).feeds(iter(()))) == []


@pytest.mark.parametrize('name', ['memory', 'streaming'])
def test_a_split_without_labels_is_refused(small, name):
  source = open_source(small(train_split='unlabelled'))
  batches = sampling.eval_batches(np.arange(3), 3)
  found = message(
      lambda: examples(loaders.make_loader(name, source), batches), kind=errors.DataError)
  assert found.startswith('config.data.label_key: small has a label outside 0 to 2; choose a split')


@pytest.mark.parametrize('file_format', FORMATS)
def test_the_memory_loader_does_without_tensorflow(small, file_format):
  command = [sys.executable, '-c', WITHOUT_TENSORFLOW, small(file_format).data_dir]
  result = subprocess.run(command, capture_output=True, text=True)
  assert result.returncode == 0, result.stderr


@pytest.mark.parametrize('fields, expected', [
    ({'name': 'cifar101'}, "name: unknown 'cifar101'; did you mean 'cifar10"),
    ({'name': 'digits/9.9.9'}, 'name: '), ({'name': 'digits/none'}, 'name: '),
    ({'image_key': 'imgae'}, "image_key: unknown 'imgae'; did you mean 'image'? choose from: "),
    ({'label_key': 'labels'}, "label_key: unknown 'labels'; did you mean 'label'? choose from: "),
    ({'image_key': 'label'}, "image_key: 'label' is not a"),
    ({'label_key': 'grey'}, "label_key: 'grey' is not a"),
    ({'image_key': 'photo'}, 'image_size: the images of small differ in size; set the side in '),
    ({'train_split': 'trian'}, "train_split: unknown 'trian'; did you mean 'train'? choose from: "),
    ({'train_split': 'train[5:5]'}, "train_split: 'train[5:5]' holds no images"),
    ({'train_split': 'train[5:'}, "train_split: 'train[5:' cannot be read ("),
    ({'train_split': 'train[:5000]'}, "train_split: 'train[:5000]' cannot be read (Requested "),
    ({'folder': '/my/images'}, "folder: is '/my/images', which config.data.name 'small' does not "),
    ({'name': 'image_folders'}, "name: unknown 'image_folders'; did you mean 'image_folder'? ")])
def test_a_setting_that_does_not_fit_the_data_set_is_named(small, fields, expected):
  assert message(open_source, small(**fields)).startswith(f'config.data.{expected}')
