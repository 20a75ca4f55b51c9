"""How many images there are to train, validate and test with, before the data set is prepared."""
import ml_collections
import tensorflow_datasets as tfds

from kdih import errors
from kdih.data import source
from kdih.data.splits import split_validation

# Images in the splits of what need not be prepared for an estimate.
_KNOWN = {'digits': {'train': 1438, 'test': 359},
          'cifar10': {'train': 50000, 'test': 10000},
          'cifar100': {'train': 50000, 'test': 10000},
          'tiny_imagenet': {'train': 100000, 'validation': 10000}}


def known(builder: tfds.core.DatasetBuilder, data: ml_collections.ConfigDict) -> dict[str, int]:
  """{'train', 'validation', 'test'}: images; {} where that is not known yet.

  Raises:
    ConfigError: a split cannot be read.
  """
  if builder.is_prepared():
    splits = source.open_splits(builder, data)
    images = {split: splits.size(split) for split in ('train', 'test')}
  elif data.name in _KNOWN:
    images = {split: _size(_KNOWN[data.name], field, data[field])
              for split, field in (('train', 'train_split'), ('test', 'test_split'))}
  else:
    return {}
  train, validation = split_validation(
      images['train'], data.validation_fraction, data.validation_seed)
  return {'train': len(train), 'validation': len(validation), 'test': images['test']}


def _size(splits: dict[str, int], field: str, split: str) -> int:
  infos = {name: tfds.core.SplitInfo(name=name, shard_lengths=[size], num_bytes=0)
           for name, size in splits.items()}
  try:
    parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
  except ValueError as error:
    raise errors.ConfigError(f'config.data.{field}: {split!r} cannot be read '
                             f'({errors.first_line(error)}); such as train[:90%]') from error
  return sum((splits[part.splitname] if part.to is None else part.to) - (part.from_ or 0)
             for part in parts)
