"""Which examples the splits of `config.data` select, known before any of them is read."""
import collections
from collections.abc import Mapping

import ml_collections
import numpy as np
import tensorflow_datasets as tfds

from kdih import errors
from kdih.data.image_folder import ImageFolder

Infos = Mapping[str, tfds.core.SplitInfo]  # Of a data set, by the names of its splits.

# Images in the splits of what need not be prepared for an estimate.
_KNOWN = {'digits': {'train': 1438, 'test': 359},
          'cifar10': {'train': 50000, 'test': 10000},
          'cifar100': {'train': 50000, 'test': 10000},
          'tiny_imagenet': {'train': 100000, 'validation': 10000},
          'imagenet2012': {'train': 1281167, 'validation': 50000, 'test': 100000}}


def known(builder: tfds.core.DatasetBuilder, data: ml_collections.ConfigDict) -> Infos:
  """Returns what is known of the data set's splits, be it prepared or not; {} if nothing."""
  if builder.info.splits:
    return builder.info.splits
  sizes: Mapping[str, int] = _KNOWN.get(builder.name, {})
  if isinstance(builder, ImageFolder):
    sizes = collections.Counter(name.partition('/')[0] for name in builder.sizes())
  return {name: tfds.core.SplitInfo(name=name, shard_lengths=[size], num_bytes=0)
          for name, size in sizes.items()}


def select(
    infos: Infos, field: str, data: ml_collections.ConfigDict
) -> dict[str, np.ndarray]:
  """Returns what `config.data.<field>`, such as 'train[:90%]+more', selects of each split.

  Returns:
    {name: bool [examples]}, True for those that are selected.

  Raises:
    ConfigError: it cannot be read, selects nothing, or an example twice.
  """
  split = data[field]
  try:
    slices = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
  except (KeyError, ValueError) as error:
    if split.isidentifier():
      raise errors.unknown(f'config.data.{field}', split, infos) from None
    raise errors.ConfigError(f'config.data.{field}: {split!r} cannot be read '
                             f'({errors.first_line(error)}); such as train[:90%]') from error
  times = {name: np.zeros(info.num_examples, int) for name, info in infos.items()}
  for part in slices:
    times[part.splitname][part.from_:part.to] += 1
  repeated = _total(count > 1 for count in times.values())
  if repeated:
    raise errors.ConfigError(f'config.data.{field}: {split!r} holds {_images(repeated)} more than '
                             'once; name each part once, such as train[:50%]+train[60%:]')
  selected = {name: count > 0 for name, count in times.items()}
  if not _total(selected.values()):
    raise errors.ConfigError(f'config.data.{field}: {split!r} holds no images')
  return selected


def parts(infos: Infos, field: str, data: ml_collections.ConfigDict) -> set[str]:
  """Returns the splits that `config.data.<field>` selects from. Raises as `select` does."""
  return {name for name, chosen in select(infos, field, data).items() if chosen.any()}


def size(infos: Infos, field: str, data: ml_collections.ConfigDict) -> int:
  """Returns how many images `config.data.<field>` selects. Raises ConfigError as `select` does."""
  return _total(select(infos, field, data).values())


def check(infos: Infos, data: ml_collections.ConfigDict) -> None:
  """Raises ConfigError where the splits to train and test with share images, or as `select` does.

  Of {} nothing is known, and nothing refused.
  """
  if not infos:
    return
  train, test = (select(infos, field, data) for field in ('train_split', 'test_split'))
  shared = _total(train[name] & test[name] for name in infos)
  if shared:
    raise errors.ConfigError(
        f'config.data.test_split: {data.test_split!r} has {_images(shared)} in common with '
        f'config.data.train_split {data.train_split!r}; to test with images that were not trained '
        'with, choose splits that share none, such as train[:90%] and train[90%:]')


def _total(masks) -> int:
  return sum(int(mask.sum()) for mask in masks)


def _images(count: int) -> str:
  return f'{count:,} image{"s"[:count > 1]}'
