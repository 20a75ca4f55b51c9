"""A split of any TFDS image-classification set, with random access and without TensorFlow."""
import itertools
import mmap
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import google_crc32c
import ml_collections
import numpy as np
import PIL.Image
import PIL.ImageOps
import tensorflow_datasets as tfds

from kdih import errors
from kdih.data import datasets, images as images_lib, selection
from kdih.data.spec import DataSpec
from kdih.data.splits import Splits, split_validation


def open_splits(builder: tfds.core.DatasetBuilder, data: ml_collections.ConfigDict) -> Splits:
  """Returns the splits that `config.data` names; the data set is prepared first where it is not.

  Raises:
    ConfigError: there is no such split, it is empty, shares images with the other one, or is too
      small to cut a validation set from.
    DataError: the data set cannot be prepared, or its files are damaged.
  """
  selection.check(selection.known(builder, data), data)  # Before anything is downloaded.
  builder = datasets.prepare(builder)
  selection.check(builder.info.splits, data)
  sources = {split: open_split(builder, f'{split}_split', data) for split in ('train', 'test')}
  fraction = data.validation_fraction
  count = len(sources['train'])
  sizes = [len(part) for part in split_validation(count, fraction, 0)]
  if not sizes[0] or (fraction and not sizes[1]):
    raise errors.ConfigError(
        f'config.data.validation_fraction: {fraction} of {count} images leaves {sizes[0]} to train '
        f'with and {sizes[1]} to validate with, so that one has no image; choose another')
  return Splits(sources, data.loader, datasets.describe(builder, data).classes)


def open_split(
    builder: tfds.core.DatasetBuilder, field: str, data: ml_collections.ConfigDict
) -> 'Source':
  """Returns the split that `config.data.<field>` names, of a prepared data set.

  Raises:
    ConfigError: there is no such split, it is empty, or holds an image twice.
    DataError: its files are damaged.
  """
  split = data[field]
  if not builder.info.splits:
    raise _damaged('the description', builder.data_dir, ValueError('it names no splits'))
  size = selection.size(builder.info.splits, field, data)
  spec = datasets.describe(builder, data)
  try:
    examples = _examples(builder, split)
    if len(examples) != size:
      raise ValueError(f'it holds {len(examples)} records of {size}')
  except Exception as error:  # TFDS and its readers raise many kinds.
    raise _damaged(f'the split {split!r}', builder.data_dir, error) from error
  return Source(examples, builder.data_dir, spec, data)


def _examples(builder: tfds.core.DatasetBuilder, split: str) -> Sequence:
  # `Source` decodes the one image that is wanted, and for labels none.
  encoded = {name: tfds.decode.SkipDecoding() for name, feature in builder.info.features.items()
             if isinstance(feature, tfds.features.Image)}
  if builder.info.file_format == tfds.core.FileFormat.TFRECORD:
    shards = builder.info.splits[split].file_instructions
    return _TFRecords(shards, builder.info.features, encoded)
  return builder.as_data_source(split=split, decoders=encoded)


def _damaged(what: str, folder: Any, error: Exception) -> errors.DataError:
  return errors.DataError(
      f'config.data.name: {what} of the data set in {folder} is damaged '
      f'({errors.first_line(error)}); put the folder back from a copy, or remove it, and the data '
      'set is prepared anew')


class Source:
  """A split with random access.

  Args:
    examples: by feature; the image as it is stored.
    folder: that they lie in, for messages.
    spec: of the data set.
    data: `config.data`.
  """

  def __init__(self, examples: Sequence, folder: Any, spec: DataSpec,
               data: ml_collections.ConfigDict):
    self.spec = spec
    self._examples = examples
    self._folder = folder
    self._image_key = data.image_key
    self._label_key = data.label_key
    self._image_size = data.image_size

  def __len__(self) -> int:
    return len(self._examples)

  def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reads uint8 images [n, height, width, channels] and int32 labels [n].

    Raises:
      DataError: a record is damaged, or its label is none of the classes.
    """
    images = np.empty((len(indices), *self.spec.image_shape), np.uint8)
    labels = np.empty(len(indices), np.int32)
    for row, index in enumerate(indices):
      images[row], labels[row] = self._read(int(index))
    return images, self._checked(labels)

  def labels(self) -> np.ndarray:
    """Reads int32 labels of the whole split, but no images. Raises DataError as `read` does."""
    return self._checked(np.array(
        [self._example(index)[self._label_key] for index in range(len(self))], np.int32))

  def _example(self, index: int) -> dict[str, Any]:
    try:
      return self._examples[index]
    except Exception as error:  # TFDS and its readers raise many kinds.
      raise self._damaged(index, error) from error

  def _read(self, index: int) -> tuple[np.ndarray, int]:
    example = self._example(index)
    try:
      image = images_lib.decode(example[self._image_key], self.spec.image_shape[-1])
    except Exception as error:  # PIL raises many kinds.
      raise self._damaged(index, error) from error
    image = self._resize(image)
    if image.shape != self.spec.image_shape:
      raise self._damaged(index, ValueError(f'an image of shape {image.shape}, where all are of '
                                            f'{self.spec.image_shape}'))
    return image, example[self._label_key]

  def _damaged(self, index: int, error: Exception) -> errors.DataError:
    return _damaged(f'example {index}', self._folder, error)

  def _checked(self, labels: np.ndarray) -> np.ndarray:
    if labels.min() < 0 or labels.max() >= self.spec.num_classes:
      raise errors.DataError(
          f'config.data.label_key: {self.spec.name} has a label outside 0 to '
          f'{self.spec.num_classes - 1}; choose a split with labels')
    return labels

  def _resize(self, image: np.ndarray) -> np.ndarray:
    if not self._image_size or image.shape == self.spec.image_shape:
      return image
    picture = PIL.Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
    side = (self._image_size, self._image_size)
    resized = PIL.ImageOps.fit(picture, side, PIL.Image.Resampling.BILINEAR)
    return np.asarray(resized).reshape(self.spec.image_shape)


class _TFRecords(Sequence):
  """Examples of TFRecord shards by number: TFDS offers random access to array_record alone."""

  def __init__(self, shards: Sequence, features: tfds.features.FeaturesDict,
               decoders: dict[str, tfds.decode.Decoder]):
    self._features = features
    self._decoders = decoders
    self._records: list[tuple[mmap.mmap, int, int]] = []
    for shard in shards:
      with open(shard.filename, 'rb') as file:  # An empty one raises ValueError.
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
      stop = None if shard.take == -1 else shard.skip + shard.take
      self._records += itertools.islice(_records(content), shard.skip, stop)

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index):
    content, start, size = self._records[index]
    return self._features.deserialize_example_np(
        _checked(content, start, size), decoders=self._decoders)


def _records(content: mmap.mmap) -> Iterator[tuple[mmap.mmap, int, int]]:
  """Yields where each record lies: 8 bytes of length, 4 of checksum, the record, 4 of checksum."""
  position = 0
  while position < len(content):
    size, = struct.unpack('<Q', _checked(content, position, 8))
    yield content, position + 12, size
    position += size + 16


def _checked(content: mmap.mmap, start: int, size: int) -> bytes:
  """Returns bytes that their checksum follows. Raises ValueError where it is wrong."""
  found = content[start:start + size]
  checksum = content[start + size:start + size + 4]
  crc = google_crc32c.value(found)
  masked = ((crc >> 15 | crc << 17) + 0xa282ead8) & 0xffffffff  # As TensorFlow stores it.
  if checksum != struct.pack('<I', masked):
    raise ValueError('a checksum is wrong')
  return found
