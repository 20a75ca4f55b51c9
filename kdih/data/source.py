"""Any TFDS image-classification split as a sequence with random access, without TensorFlow."""
import dataclasses
import itertools
import mmap
import struct
from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np
import PIL.Image
import PIL.ImageOps
import requests
import tensorflow_datasets as tfds

from kdih import errors

_PREPARE = ('`python -c "import tensorflow_datasets as tfds; '
            "tfds.builder('{name}', data_dir={data_dir!r}).download_and_prepare()\"`")


@dataclasses.dataclass(frozen=True)
class DataSpec:
  """What models need to know of a data set."""

  name: str
  image_shape: tuple[int, int, int]  # Height, width, channels.
  num_classes: int


def open_builder(data: ml_collections.ConfigDict) -> tfds.core.DatasetBuilder:
  """The TFDS builder that `config.data` names; nothing is downloaded."""
  from kdih.data import digits as _  # noqa: F401  Registers kdih's own builder.

  try:
    return tfds.builder(data.name, data_dir=data.data_dir or None, try_gcs=False)
  except tfds.core.registered.DatasetNotFoundError:
    names = tfds.list_builders(with_community_datasets=False)
    raise _unknown_dataset(data.name, names) from None
  except Exception as error:  # TFDS raises many kinds for a bad version or config name.
    raise errors.ConfigError(f'config.data.name: TFDS cannot open {data.name!r}: '
                             f'{errors.first_line(error)}') from error


def _unknown_dataset(name: str, names: Sequence[str]) -> errors.ConfigError:
  close = errors.closest(name, names)
  return errors.ConfigError(
      f'config.data.name: unknown {name!r}; {close}give the name of a TFDS data set, such as '
      'cifar10, cifar100 or digits')


def describe(builder: tfds.core.DatasetBuilder, data: ml_collections.ConfigDict) -> DataSpec:
  """Shapes and classes from the data set's metadata, before anything is read.

  Raises:
    ConfigError: a key that is no image or no class, or images of several sizes.
  """
  image = _feature(builder, 'image_key', data.image_key, tfds.features.Image)
  label = _feature(builder, 'label_key', data.label_key, tfds.features.ClassLabel)
  height, width, channels = image.shape
  if data.image_size:
    height = width = data.image_size
  if height is None or width is None:
    raise errors.ConfigError(
        f'config.data.image_size: the images of {data.name} differ in size; set the side in '
        'pixels to resize them to')
  for field in ('mean', 'std'):
    if len(data[field]) not in (1, channels):
      raise errors.ConfigError(
          f'config.data.{field}: has {len(data[field])} numbers for images of {channels} '
          f'channel{"s"[:channels > 1]}; give one for each channel, or one for all')
  return DataSpec(data.name, (height, width, channels), label.num_classes)


def _feature(builder, field: str, key: str, kind: type) -> Any:
  features = builder.info.features
  if key not in features:
    raise errors.unknown(f'config.data.{field}', key, features)
  if not isinstance(features[key], kind):
    raise errors.ConfigError(f'config.data.{field}: {key!r} is not a {kind.__name__} feature')
  return features[key]


def prepare(builder: tfds.core.DatasetBuilder, timeout: float = 5.0) -> None:
  """Downloads and prepares the data set where that has not been done.

  Raises:
    DataError: it is not prepared, and its source does not answer within `timeout` seconds or
      TFDS fails; the message says how to prepare it.
  """
  if builder.is_prepared():
    return
  remedy = ('prepare it where there is a network with '
            + _PREPARE.format(name=builder.name, data_dir=str(builder.data_dir_root))
            + f' and copy {builder.data_dir_root}, or set config.data.data_dir')
  unreachable = _unreachable(builder, timeout)
  if unreachable:
    raise errors.DataError(f'config.data.name: {builder.name} is not prepared in '
                           f'{builder.data_dir_root} and {unreachable} does not answer; {remedy}')
  if not builder.url_infos:
    tfds.disable_progress_bar()  # Nothing to download: it is over in seconds.
  try:
    builder.download_and_prepare(file_format='array_record')
  except Exception as error:
    raise errors.DataError(f'config.data.name: TFDS could not prepare {builder.name} '
                           f'({errors.first_line(error)}); {remedy}') from error


def _unreachable(builder: tfds.core.DatasetBuilder, timeout: float) -> str | None:
  url = next(iter(builder.url_infos or ()), None)
  if url is None:
    return None
  try:
    requests.head(url, timeout=timeout, allow_redirects=True)
  except requests.RequestException:
    return url
  return None


def open_split(
    builder: tfds.core.DatasetBuilder, field: str, data: ml_collections.ConfigDict
) -> 'Source':
  """The split that `config.data.<field>` names, of a prepared data set."""
  split = data[field]
  try:
    info = builder.info.splits[split]
  except (KeyError, ValueError):
    raise errors.unknown(f'config.data.{field}', split, builder.info.splits) from None
  if not info.num_examples:
    raise errors.ConfigError(f'config.data.{field}: {split!r} holds no images')
  if builder.info.file_format == tfds.core.FileFormat.TFRECORD:
    examples: Sequence = _TFRecords(info.file_instructions, builder.info.features)
  else:
    examples = builder.as_data_source(split=split)
  return Source(examples, describe(builder, data), data)


class Source:
  """A split with random access."""

  def __init__(self, examples: Sequence, spec: DataSpec, data: ml_collections.ConfigDict):
    self.spec = spec
    self._examples = examples
    self._image_key, self._label_key = data.image_key, data.label_key
    self._image_size = data.image_size

  def __len__(self) -> int:
    return len(self._examples)

  def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images [n, height, width, channels] and int32 labels [n]."""
    examples = [self._examples[int(i)] for i in indices]
    images = np.stack([self._resize(e[self._image_key]) for e in examples])
    labels = np.array([e[self._label_key] for e in examples], np.int32)
    if labels.min() < 0 or labels.max() >= self.spec.num_classes:
      raise errors.DataError(
          f'config.data.label_key: {self.spec.name} has a label outside 0 to '
          f'{self.spec.num_classes - 1}; choose a split with labels')
    return images, labels

  def labels(self) -> np.ndarray:
    """int32 labels of the whole split."""
    return np.array([example[self._label_key] for example in self._examples], np.int32)

  def _resize(self, image: np.ndarray) -> np.ndarray:
    if not self._image_size or image.shape == self.spec.image_shape:
      return image
    picture = PIL.Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
    side = (self._image_size, self._image_size)
    resized = PIL.ImageOps.fit(picture, side, PIL.Image.Resampling.BILINEAR)
    return np.asarray(resized).reshape(self.spec.image_shape)


class _TFRecords(Sequence):
  """Examples of TFRecord shards by number: TFDS offers random access to array_record alone."""

  def __init__(self, shards: Sequence, features: tfds.features.FeaturesDict):
    self._features = features
    self._records: list[tuple[mmap.mmap, int, int]] = []
    for shard in shards:
      with open(shard.filename, 'rb') as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
      stop = None if shard.take == -1 else shard.skip + shard.take
      self._records += itertools.islice(_records(content), shard.skip, stop)

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index):
    content, start, size = self._records[index]
    return self._features.deserialize_example_np(content[start:start + size])


def _records(content: mmap.mmap):
  """Where each record lies: 8 bytes of length, 4 of checksum, the record, 4 of checksum."""
  position = 0
  while position < len(content):
    size, = struct.unpack_from('<Q', content, position)
    yield content, position + 12, size
    position += size + 16
