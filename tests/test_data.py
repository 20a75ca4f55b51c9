"""Order, preprocessing, TFDS sources in both file formats, and the two loaders."""
import functools
import itertools
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from kdih import config_lib, data, errors

FORMATS = ('tfrecord', 'array_record')
SUBSET = np.array([3, 4, 8, 9, 11, 15, 16, 20, 21, 30], np.int32)
PHOTO_SIZES = ((8, 12), (12, 8), (10, 10))
FEATURES = tfds.features.FeaturesDict({
    'image': tfds.features.Image(shape=(6, 8, 3)),
    'photo': tfds.features.Image(shape=(None, None, 3)),
    'grey': tfds.features.Image(shape=(6, 6, 1)),
    'label': tfds.features.ClassLabel(num_classes=3)})
WITHOUT_TENSORFLOW = """
import sys
from kdih import config_lib, data
config = config_lib.base().data
config.update(name='small', data_dir=sys.argv[1])
loader = data.MemoryLoader(data.open_split(data.open_builder(config), 'train_split', config))
assert loader.resident['label'].shape == (40,) and 'tensorflow' not in sys.modules
"""


def pixels(seed, *shape):
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def photo(index):
  return pixels(index, *PHOTO_SIZES[index % 3], 3)


with tfds.core.registered.skip_registration():
  class Small(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, disable_shuffling=True, features=FEATURES)

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples(0, 40), 'test': self._generate_examples(40, 47),
              'unlabelled': self._generate_examples(47, 50)}

    def _generate_examples(self, start, stop):
      for i in range(start, stop):
        yield i, {'image': pixels(i, 6, 8, 3), 'photo': photo(i), 'grey': pixels(i, 6, 6, 1),
                  'label': i % 3 if i < 47 else -1}

  class Failing(Small):
    def _generate_examples(self, start, stop):
      raise RuntimeError('no such file\nand a second line')


def make_config(**fields):
  config = config_lib.base().data
  config.update(**fields)
  return config


@pytest.fixture(scope='session')
def digits(tmp_path_factory):
  folder = str(tmp_path_factory.mktemp('digits'))
  data.prepare(data.open_builder(make_config(data_dir=folder)))
  return folder


@pytest.fixture(scope='session')
def small_dirs(tmp_path_factory):
  """One prepared copy of Small per file format, its train split in three shards."""
  found = {}
  for file_format in FORMATS:
    found[file_format] = str(tmp_path_factory.mktemp(file_format))
    Small(data_dir=found[file_format]).download_and_prepare(
        file_format=file_format, download_config=tfds.download.DownloadConfig(num_shards=3))
  return found


@pytest.fixture
def small(small_dirs):
  def config(file_format='array_record', **fields):
    return make_config(**{'name': 'small', 'data_dir': small_dirs[file_format], **fields})
  return config


def open_source(config):
  """Opens the train split, all checks included."""
  builder = data.open_builder(config)
  data.describe(builder, config)
  return data.open_split(builder, 'train_split', config)


def read(config):
  source = open_source(config)
  return source.read(np.arange(len(source)))


def message(call, *args, kind=errors.ConfigError):
  with pytest.raises(kind) as caught:
    call(*args)
  assert '\n' not in str(caught.value)
  return str(caught.value)


def examples(loader, batches):
  gather = jax.jit(loader.gather)
  return [jax.device_get(gather(loader.resident, feed)) for feed in loader.feeds(batches)]


def indices(*args):
  return [batch['index'] for batch in data.train_batches(*args)]


@functools.cache
def compiled(**options):
  """Preprocessing that leaves pixels in 0 to 255, unless the options say otherwise."""
  defaults = dict(mean=(0.0,), std=(1 / 255,), padding=2, padding_mode='zeros', flip=True)
  return jax.jit(data.make_preprocess(**(defaults | options)))


def preprocess(images, key, index=None, **options):
  index = np.arange(len(images)) if index is None else index
  return np.rint(compiled(**options)(images, index, key))


def windows(image, padding, mode, flip):
  """Every crop of the padded image, mirrored ones too if they flip, as bytes."""
  height, width, _ = image.shape
  border = (padding, padding)
  padded = np.pad(image.astype(np.float32), (border, border, (0, 0)), mode)
  crops = [padded[top:top + height, left:left + width]
           for top, left in itertools.product(range(2 * padding + 1), repeat=2)]
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
def test_batches_are_the_same_wherever_the_run_starts(start):
  whole = indices(SUBSET, 4, 30, 0, 12)
  np.testing.assert_array_equal(indices(SUBSET, 4, 30, start, 12), whole[start:])


def test_the_seed_decides_the_order():
  first, again, other = (np.concatenate(indices(SUBSET, 5, seed, 0, 2)) for seed in (1, 1, 2))
  np.testing.assert_array_equal(first, again)
  assert not np.array_equal(first, other)


@pytest.mark.parametrize('batch_size, masks', [
    (4, [4, 4, 2]), (5, [5, 5]), (16, [10]), (3, [3, 3, 3, 1])])
def test_evaluation_shows_each_example_once_and_masks_the_filling(batch_size, masks):
  batches = list(data.eval_batches(SUBSET, batch_size))
  assert [batch['mask'].sum() for batch in batches] == masks
  assert {batch[key].shape for batch in batches for key in batch} == {(batch_size,)}
  index, mask = (np.concatenate([batch[key] for batch in batches]) for key in ('index', 'mask'))
  assert (index.dtype, mask.dtype) == (np.int32, np.float32)
  np.testing.assert_array_equal(index[mask == 1], SUBSET)
  assert set(index) == set(SUBSET) and set(mask) <= {0, 1}


@pytest.mark.parametrize('count, fraction, size', [(100, 0.1, 10), (1437, 0.1, 144), (50, 0.0, 0)])
def test_the_validation_split_is_disjoint_complete_and_seeded(count, fraction, size):
  train, held_out = data.split_validation(count, fraction, 0)
  assert len(held_out) == size and train.dtype == held_out.dtype == np.int32
  np.testing.assert_array_equal(np.sort(np.concatenate([train, held_out])), np.arange(count))
  np.testing.assert_array_equal(data.split_validation(count, fraction, 0)[1], held_out)
  assert (np.diff(train) > 0).all() and (np.diff(held_out) > 0).all()
  if size:
    assert not np.array_equal(data.split_validation(count, fraction, 1)[1], held_out)


@pytest.mark.parametrize('mean, std', [
    ((0.5,), (0.25,)), ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261))])
def test_without_a_key_images_are_only_normalised(mean, std):
  images = pixels(0, 2, 4, 5, 3)
  found = compiled(mean=mean, std=std)(images, np.arange(2), None)
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, (images / 255 - mean) / std, rtol=1e-5, atol=1e-6)


def test_padding_is_black_before_normalisation():
  images = np.full((64, 2, 2, 1), 255, np.uint8)
  found = preprocess(images, jax.random.key(0), mean=(0.5,), std=(0.5 / 100,))
  assert set(found.ravel()) == {-100, 100}


@pytest.mark.parametrize('padding, mode, flip, count', [
    (2, 'zeros', True, 50), (2, 'zeros', False, 25), (2, 'reflect', True, 50),
    (1, 'reflect', False, 9), (0, 'zeros', True, 2)])
def test_augmentation_gives_every_window_of_the_padded_image_and_no_other(
    padding, mode, flip, count):
  image = np.arange(1, 61, dtype=np.uint8).reshape(5, 6, 2)
  possible = windows(image, padding, {'zeros': 'constant'}.get(mode, mode), flip)
  assert len(possible) == count
  found = preprocess(np.stack([image] * 600), jax.random.key(1), padding=padding,
                     padding_mode=mode, flip=flip)
  assert {crop.tobytes() for crop in found} == possible


def test_an_augmentation_depends_on_the_key_and_the_index_and_not_on_the_batch():
  images, key = pixels(0, 8, 5, 5, 3), jax.random.key(5)
  whole = preprocess(images, key)
  some = np.array([6, 1, 3])
  np.testing.assert_array_equal(preprocess(images[some], key, some), whole[some])
  assert not np.array_equal(preprocess(images, jax.random.key(6)), whole)
  assert not np.array_equal(preprocess(images, key, np.arange(8) + 8), whole)


def test_digits_are_scikit_learns_every_fifth_one_for_the_test(digits):
  from sklearn import datasets
  expected, is_test = datasets.load_digits(), np.arange(1797) % 5 == 4
  for split, chosen in (('train', ~is_test), ('test', is_test)):
    images, labels = read(make_config(data_dir=digits, train_split=split))
    np.testing.assert_array_equal(labels, expected.target[chosen])
    np.testing.assert_allclose(images[..., 0] * (16 / 255), expected.images[chosen], atol=0.04)


def test_a_data_set_is_described_before_it_is_prepared(tmp_path):
  config = make_config(data_dir=str(tmp_path))
  assert data.describe(data.open_builder(config), config) == data.DataSpec('digits', (8, 8, 1), 10)


@pytest.mark.parametrize('file_format', FORMATS)
@pytest.mark.parametrize('split, expected', [
    ('train', range(40)), ('test', range(40, 47)), ('train[10:20]', range(10, 20)),
    ('train[-3:]', range(37, 40)), ('train[25%:75%]', range(10, 30)),
    ('train[38:]+test[:2]', range(38, 42))])
def test_a_split_holds_what_was_written_and_is_read_in_any_order(
    small, file_format, split, expected):
  config = small(file_format, train_split=split)
  assert data.open_builder(config).info.splits['train'].num_shards == 3
  source = open_source(config)
  order = np.random.default_rng(0).permutation([*range(len(expected)), 0])
  images, labels = source.read(order)
  assert (len(source), images.dtype, labels.dtype) == (len(expected), np.uint8, np.int32)
  np.testing.assert_array_equal(images, [pixels(expected[i], 6, 8, 3) for i in order])
  np.testing.assert_array_equal(labels, [expected[i] % 3 for i in order])


@pytest.mark.parametrize('key, size, originals', [
    ('photo', 5, [photo(0)[:, 2:10], photo(1)[2:10], photo(2)]),
    ('photo', 20, [photo(0)[:, 2:10], photo(1)[2:10], photo(2)]),
    ('grey', 3, [pixels(i, 6, 6, 1) for i in range(3)]),
    ('grey', 6, [pixels(i, 6, 6, 1) for i in range(3)])])
def test_images_are_resized_from_their_middle_square(small, key, size, originals):
  images, _ = read(small(image_key=key, image_size=size, train_split='train[:3]'))
  assert images.shape == (3, size, size, originals[0].shape[-1])
  pictures = [PIL.Image.fromarray(original.squeeze()).resize(
      (size, size), PIL.Image.Resampling.BILINEAR) for original in originals]
  edge = slice(2, -2) if size > 8 else slice(1, -1)  # Beyond it, pixels outside the square count.
  for image, picture in zip(images, pictures, strict=True):
    np.testing.assert_array_equal(image.squeeze()[edge, edge], np.asarray(picture)[edge, edge])


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('file_format', FORMATS)
def test_both_loaders_give_the_same_examples(small, file_format, training):
  source, subset = open_source(small(file_format)), np.arange(0, 40, 2, dtype=np.int32)
  batches = list(data.train_batches(subset, 8, 30, 2, 25) if training
                 else data.eval_batches(subset, 16))
  memory, streaming = (examples(data.make_loader(name, source), batches)
                       for name in ('memory', 'streaming'))
  assert len(memory) == len(streaming) == len(batches)
  for batch, one, other in zip(batches, memory, streaming, strict=True):
    np.testing.assert_array_equal(one['image'], [pixels(i, 6, 8, 3) for i in batch['index']])
    assert one.keys() == other.keys() == {*batch, 'image', 'label'}
    for key in one:
      np.testing.assert_array_equal(one[key], other[key])
      assert one[key].dtype == other[key].dtype


@pytest.mark.parametrize('name', ['memory', 'streaming'])
def test_no_batches_give_no_feeds(small, name):
  assert list(data.make_loader(name, open_source(small())).feeds(iter(()))) == []


@pytest.mark.parametrize('name', ['memory', 'streaming'])
def test_a_split_without_labels_is_refused(small, name):
  def load():
    source = open_source(small(train_split='unlabelled'))
    examples(data.make_loader(name, source), data.eval_batches(np.arange(3), 3))
  assert message(load, kind=errors.DataError) == (
      'config.data.label_key: small has a label outside 0 to 2; choose a split with labels')


@pytest.mark.parametrize('file_format', FORMATS)
def test_the_memory_loader_does_without_tensorflow(small_dirs, file_format):
  command = [sys.executable, '-c', WITHOUT_TENSORFLOW, small_dirs[file_format]]
  result = subprocess.run(command, capture_output=True, text=True)
  assert result.returncode == 0, result.stderr


@pytest.mark.parametrize('field, value, expected', [
    ('name', 'cifar101', "unknown 'cifar101'; did you mean 'cifar10"),
    ('name', 'digits/9.9.9', ''), ('name', 'digits/none', ''), ('name', '', ''),
    ('image_key', 'imgae', "unknown 'imgae'; did you mean 'image'? choose from: "),
    ('label_key', 'labels', "unknown 'labels'; did you mean 'label'? choose from: "),
    ('image_key', 'label', "'label' is not a"), ('label_key', 'grey', "'grey' is not a"),
    ('train_split', 'trian', "unknown 'trian'; did you mean 'train'? choose from: "),
    ('train_split', 'train[5:5]', "'train[5:5]' holds no images"),
    ('train_split', 'train[5:', ''), ('train_split', 'train[:5000]', '')])
def test_a_setting_that_does_not_fit_the_data_set_is_named(small, field, value, expected):
  found = message(open_source, small(**{field: value}))
  assert found.startswith(f'config.data.{field}: {expected}')


def test_images_that_differ_in_size_are_refused(small):
  assert message(open_source, small(image_key='photo')).startswith(
      'config.data.image_size: the images of small differ in size; set the side in ')


def test_data_that_cannot_be_downloaded_are_refused_at_once(tmp_path, monkeypatch):
  monkeypatch.setenv('NO_PROXY', '127.0.0.1')
  builder = data.open_builder(make_config(name='cifar10', data_dir=str(tmp_path)))
  monkeypatch.setattr(type(builder), 'url_infos', {'http://127.0.0.1:9/x': None})
  started = time.monotonic()
  found = message(data.prepare, builder, kind=errors.DataError)
  assert time.monotonic() - started < 10
  assert found.startswith(f'config.data.name: cifar10 is not prepared in {tmp_path} and '
                          'http://127.0.0.1:9/x does not answer; prepare it where there is a net')
  assert "tfds.builder('cifar10', data_dir=" in found and 'download_and_prepare()' in found


def test_data_that_cannot_be_prepared_are_refused_with_the_reason(tmp_path):
  found = message(data.prepare, Failing(data_dir=str(tmp_path)), kind=errors.DataError)
  assert found.startswith('config.data.name: TFDS could not prepare failing (')
  assert 'no such file' in found and 'download_and_prepare()' in found
