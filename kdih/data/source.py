"""A split of any TFDS image-classification set, with random access and without TensorFlow."""
import itertools
import mmap
import struct
from collections.abc import Sequence

import ml_collections
import numpy as np
import PIL.Image
import PIL.ImageOps
import tensorflow_datasets as tfds

from kdih import errors
from kdih.data import builders


def open_split(
    builder: tfds.core.DatasetBuilder, field: str, data: ml_collections.ConfigDict
) -> 'Source':
  """The split that `config.data.<field>` names, of a prepared data set."""
  split = data[field]
  try:
    info = builder.info.splits[split]
  except (KeyError, ValueError) as error:
    if split.isidentifier():
      raise errors.unknown(f'config.data.{field}', split, builder.info.splits) from None
    raise errors.ConfigError(f'config.data.{field}: {split!r} cannot be read '
                             f'({errors.first_line(error)}); such as train[:90%]') from error
  if not info.num_examples:
    raise errors.ConfigError(f'config.data.{field}: {split!r} holds no images')
  spec = builders.describe(builder, data)
  encoded = {data.image_key: tfds.decode.SkipDecoding()}  # For who asks for labels alone.
  if builder.info.file_format == tfds.core.FileFormat.TFRECORD:
    examples: Sequence = _TFRecords(info.file_instructions, builder.info.features, encoded)
  else:
    examples = builder.as_data_source(split=split, decoders=encoded)
  return Source(examples, builder.info.features[data.image_key], spec, data)


class Source:
  """A split with random access.

  Args:
    examples: by feature; the image as it is stored.
    feature: decodes the image.
    spec: of the data set.
    data: `config.data`.
  """

  def __init__(self, examples: Sequence, feature: tfds.features.Image,
               spec: builders.DataSpec, data: ml_collections.ConfigDict):
    self.spec = spec
    self._examples, self._decode = examples, feature.decode_example_np
    self._image_key, self._label_key = data.image_key, data.label_key
    self._image_size = data.image_size

  def __len__(self) -> int:
    return len(self._examples)

  def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images [n, height, width, channels] and int32 labels [n]."""
    examples = [self._examples[int(i)] for i in indices]
    images = np.stack([self._resize(self._decode(e[self._image_key])) for e in examples])
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

  def __init__(self, shards: Sequence, features: tfds.features.FeaturesDict,
               decoders: dict[str, tfds.decode.Decoder]):
    self._features, self._decoders = features, decoders
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
    return self._features.deserialize_example_np(
        content[start:start + size], decoders=self._decoders)


def _records(content: mmap.mmap):
  """Where each record lies: 8 bytes of length, 4 of checksum, the record, 4 of checksum."""
  position = 0
  while position < len(content):
    size, = struct.unpack_from('<Q', content, position)
    yield content, position + 12, size
    position += size + 16
