"""The splits of a data set, with random access and without TensorFlow."""
import functools
import itertools
import mmap
from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np
import PIL.Image
import tensorflow_datasets as tfds

from kdih import errors
from kdih.data import datasets, images as images_lib, prepared, selection
from kdih.data.datasets import DataSet
from kdih.data.image_folder import FolderSplit, ImageFolder
from kdih.data.spec import SPLITS, DataSpec
from kdih.data.splits import Splits, validation_sizes
from kdih.runtime import tfrecords


def open_splits(builder: DataSet, data: ml_collections.ConfigDict) -> Splits:
  """Returns the splits that `config.data` names; prepares the data set first if necessary.

  Raises:
    ConfigError: there is no such split, it is empty, it shares images with the other one, or it
      is too small to cut a validation set from.
    DataError: the data set cannot be prepared, or its files are damaged.
  """
  selection.check(selection.known(builder), data)  # Before anything is downloaded.
  builder = datasets.prepare(builder)
  selection.check(builder.info.splits, data)
  sources = {split: open_split(builder, f'{split}_split', data) for split in SPLITS}
  fraction = data.validation_fraction
  count = len(sources['train'])
  sizes = validation_sizes(count, fraction)
  if not sizes[0] or (fraction and not sizes[1]):
    raise errors.ConfigError(
        f'config.data.validation_fraction: {fraction} of {count} images leaves {sizes[0]} to train '
        f'with and {sizes[1]} to validate with, and one part has no image; choose another fraction')
  return Splits(sources, data.loader, datasets.describe(builder, data).classes)


def open_split(
    builder: DataSet, field: str, data: ml_collections.ConfigDict
) -> 'Source | FolderSplit':
  """Returns the split that `config.data.<field>` names, of a prepared data set.

  Raises:
    ConfigError: there is no such split, it is empty, or it holds an image twice.
    DataError: its files are damaged.
  """
  split = data[field]
  size = selection.size(builder.info.splits, field, data)
  spec = datasets.describe(builder, data)
  if isinstance(builder, ImageFolder):
    return FolderSplit(builder, split, spec)
  try:
    records = _records_of(builder, split)
    if len(records) != size:
      raise ValueError(f'it holds {len(records)} records of {size}')
  except Exception as error:  # TFDS and its readers raise many kinds.
    raise prepared.damaged(f'the split {split!r}', builder.data_dir, error) from error
  return Source(records, builder.data_dir, spec, data)


def _records_of(builder: tfds.core.DatasetBuilder, split: str) -> Sequence:
  # `Source` decodes the one image that is wanted, and for labels none.
  encoded = {name: tfds.decode.SkipDecoding() for name, feature in builder.info.features.items()
             if isinstance(feature, tfds.features.Image)}
  if builder.info.file_format == tfds.core.FileFormat.TFRECORD:
    shards = builder.info.splits[split].file_instructions
    return _TFRecords(shards, builder.info.features, encoded)
  return builder.as_data_source(split=split, decoders=encoded)


class Source:
  """A split of a TFDS data set; see `kdih.data.loaders.Examples`.

  Args:
    records: the examples, dictionaries by feature with the images as files.
    folder: the folder of the data set, for messages.
    spec: of the data set.
    data: `config.data`.
  """

  def __init__(self, records: Sequence, folder: Any, spec: DataSpec,
               data: ml_collections.ConfigDict):
    self.spec = spec
    self._records = records
    self._folder = folder
    self._image_key = data.image_key
    self._label_key = data.label_key
    self._image_size = data.image_size

  def __len__(self) -> int:
    return len(self._records)

  def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reads images and labels.

    Raises:
      DataError: a record is damaged, or its label is outside the classes.
    """
    images = np.empty((len(indices), *self.spec.image_shape), np.uint8)
    labels = np.empty(len(indices), np.int32)
    for row, index in enumerate(indices):
      images[row], labels[row] = self._read(int(index))
    return images, self._checked(labels)

  def labels(self) -> np.ndarray:
    """Reads all labels, but no images. Raises DataError as `read` does."""
    return self._checked(np.array(
        [self._record(index)[self._label_key] for index in range(len(self))], np.int32))

  def _record(self, index: int) -> dict[str, Any]:
    try:
      return self._records[index]
    except Exception as error:  # TFDS and its readers raise many kinds.
      raise self._damaged(index, error) from error

  def _read(self, index: int) -> tuple[np.ndarray, int]:
    record = self._record(index)
    try:
      image = images_lib.decode(record[self._image_key], self.spec.image_shape[-1])
    except PIL.Image.DecompressionBombError as error:
      raise errors.DataError(
          f'config.data.name: example {index} of the data set in {self._folder} is '
          f'{images_lib.fault(error)}; prepare the data set with smaller images') from error
    except Exception as error:  # PIL raises many kinds.
      raise self._damaged(index, error) from error
    if self._image_size:
      image = images_lib.fit(image, self.spec.image_shape)
    if image.shape != self.spec.image_shape:
      raise self._damaged(index, ValueError(
          f'its image has the shape {image.shape} instead of {self.spec.image_shape}'))
    return image, record[self._label_key]

  def _damaged(self, index: int, error: Exception) -> errors.DataError:
    return prepared.damaged(f'example {index}', self._folder, error)

  def _checked(self, labels: np.ndarray) -> np.ndarray:
    if labels.min() < 0 or labels.max() >= self.spec.num_classes:
      raise errors.DataError(
          f'config.data.label_key: {self.spec.name} has a label outside 0 to '
          f'{self.spec.num_classes - 1}; choose a split with labels')
    return labels


class _TFRecords(Sequence):
  """Random access to the examples of TFRecord shards; TFDS has it for array_record alone."""

  def __init__(self, shards: Sequence, features: tfds.features.FeaturesDict,
               decoders: dict[str, tfds.decode.Decoder]):
    self._features = features
    self._decoders = decoders
    self._places: list[tuple[tfrecords.Read, int, int]] = []
    for shard in shards:
      with open(shard.filename, 'rb') as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # ValueError if empty.
      stop = None if shard.take == -1 else shard.skip + shard.take
      read = functools.partial(_slice, content)
      self._places += ((read, start, size) for start, size in itertools.islice(
          tfrecords.places(read, len(content)), shard.skip, stop))

  def __len__(self) -> int:
    return len(self._places)

  def __getitem__(self, index):
    return self._features.deserialize_example_np(
        tfrecords.checked(*self._places[index]), decoders=self._decoders)


def _slice(content: mmap.mmap, start: int, size: int) -> bytes:
  return content[start:start + size]
