"""The examples that the splits of `config.data` select, found out before any is read."""
from collections.abc import Mapping

import ml_collections
import numpy as np
import tensorflow_datasets as tfds

from kdih import errors
from kdih.data.datasets import DataSet

Infos = Mapping[str, tfds.core.SplitInfo]  # By the names of a data set's splits.

# The numbers of images of data sets that can be estimated before they are prepared.
_KNOWN = {'digits': {'train': 1438, 'test': 359},
          'cifar10': {'train': 50000, 'test': 10000},
          'cifar100': {'train': 50000, 'test': 10000},
          'tiny_imagenet': {'train': 100000, 'validation': 10000},
          'imagenet2012': {'train': 1281167, 'validation': 50000, 'test': 100000}}


def known(builder: DataSet) -> Infos:
  """Returns the data set's splits, prepared or not; {} if their sizes are unknown."""
  if builder.info.splits:
    return builder.info.splits
  return {name: tfds.core.SplitInfo(name=name, shard_lengths=[size], num_bytes=0)
          for name, size in _KNOWN.get(builder.name, {}).items()}


def select(
    infos: Infos, field: str, data: ml_collections.ConfigDict
) -> dict[str, np.ndarray]:
  """Returns which examples `config.data.<field>`, such as 'train[:90%]+more', selects.

  Returns:
    {name of a split: bool [examples]}, True for the selected examples.

  Raises:
    ConfigError: the setting cannot be read, or selects no example, or one twice.
  """
  split = data[field]
  try:
    slices = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
  except (KeyError, ValueError) as error:
    if split.isidentifier():
      raise errors.unknown(f'config.data.{field}', split, infos) from None
    raise errors.ConfigError(f'config.data.{field}: {split!r} cannot be read '
                             f'({errors.first_line(error)}); give a split such as '
                             'train[:90%]') from error
  times = {name: np.zeros(info.num_examples, int) for name, info in infos.items()}
  for part in slices:
    times[part.splitname][part.from_:part.to] += 1
  repeated = _total(count > 1 for count in times.values())
  if repeated:
    raise errors.ConfigError(f'config.data.{field}: {split!r} holds {_images(repeated)} more than '
                             'once; name each part once, such as train[:50%]+train[60%:]')
  selected = {name: count > 0 for name, count in times.items()}
  if not _total(selected.values()):
    raise errors.ConfigError(
        f'config.data.{field}: {split!r} holds no images; choose a larger part')
  return selected


def parts(infos: Infos, field: str, data: ml_collections.ConfigDict) -> set[str]:
  """Returns the splits that `config.data.<field>` is a part of. Raises as `select` does."""
  return {name for name, chosen in select(infos, field, data).items() if chosen.any()}


def size(infos: Infos, field: str, data: ml_collections.ConfigDict) -> int:
  """Returns how many images `config.data.<field>` selects. Raises ConfigError as `select` does."""
  return _total(select(infos, field, data).values())


def check(infos: Infos, data: ml_collections.ConfigDict) -> None:
  """Raises ConfigError if `train_split` and `test_split` share images, or as `select` does.

  Accepts everything if `infos` is {}, because the splits are unknown then.
  """
  if not infos:
    return
  train, test = (select(infos, field, data) for field in ('train_split', 'test_split'))
  shared = _total(train[name] & test[name] for name in infos)
  if shared:
    raise errors.ConfigError(
        f'config.data.test_split: {data.test_split!r} has {_images(shared)} in common with '
        f'config.data.train_split {data.train_split!r}; choose splits that share none, such as '
        'train[:90%] and train[90%:]')


def _total(masks) -> int:
  return sum(int(mask.sum()) for mask in masks)


def _images(count: int) -> str:
  return f'{count:,} image{"s"[:count > 1]}'
