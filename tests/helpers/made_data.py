"""Small data sets, folders of images and configs that read them, and what loaders give."""
import jax
import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from kdih import errors
from kdih.config import fields as fields_lib
from kdih.data import datasets
from kdih.data.source import open_split

FORMATS = ('tfrecord', 'array_record')
CLASSES = ('ant', 'Bee', 'cow')
PHOTO_SHAPES = ((8, 12, 3), (12, 8, 3), (10, 10, 3))


def pixels(seed, *shape):
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


with tfds.core.registered.skip_registration():
  class Small(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      return tfds.core.DatasetInfo(
          builder=self, disable_shuffling=True, features=tfds.features.FeaturesDict({
              'image': tfds.features.Image(shape=(6, 8, 3)),
              'photo': tfds.features.Image(shape=(None, None, 3)),
              'grey': tfds.features.Image(shape=(6, 6, 1)),
              'label': tfds.features.ClassLabel(num_classes=3)}))

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples(0, 40), 'test': self._generate_examples(40, 47),
              'unlabelled': self._generate_examples(47, 50)}

    def _generate_examples(self, start, stop):
      for i in range(start, stop):
        shapes = {'image': (6, 8, 3), 'photo': PHOTO_SHAPES[i % 3], 'grey': (6, 6, 1)}
        images = {key: pixels(i, *shape) for key, shape in shapes.items()}
        yield i, {**images, 'label': i % 3 if i < 47 else -1}


def make_config(**fields):
  config = fields_lib.base().data
  config.update(**fields)
  return config


def open_source(config):
  builder = datasets.open_builder(config)
  datasets.describe(builder, config)
  return open_split(builder, 'train_split', config)


def message(call, *args, kind=errors.ConfigError):
  with pytest.raises(kind) as caught:
    call(*args)
  assert '\n' not in str(caught.value)
  return str(caught.value)


def examples(loader, batches):
  gather = jax.jit(loader.gather)
  return [jax.device_get(gather(loader.resident, feed)) for feed in loader.feeds(batches)]


def save(path, array, mode=None, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  picture = array if isinstance(array, PIL.Image.Image) else PIL.Image.fromarray(array)
  picture.save(path, **options)
  return path


def make_folder(root, height=6, width=6):
  """Four images to train with and two to test, of each class; returns the pixels by file."""
  written = {}
  for split, count in (('train', 4), ('test', 2)):
    for label in CLASSES:
      for i in range(count):
        name = f'{split}/{label}/{i}.png'
        written[name] = pixels(len(written), height, width, 3)
        save(root / name, written[name])
  return written
