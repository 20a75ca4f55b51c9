"""How many images there are to train, validate and test with, before the data set is prepared."""
import ml_collections
import tensorflow_datasets as tfds

from kdih.data import selection, source
from kdih.data.splits import split_validation


def known(builder: tfds.core.DatasetBuilder, data: ml_collections.ConfigDict) -> dict[str, int]:
  """Returns {'train', 'validation', 'test'}: images; {} where that is not known yet.

  Raises:
    ConfigError: a split cannot be read, or they share images.
  """
  if builder.is_prepared():
    splits = source.open_splits(builder, data)
    images = {split: splits.size(split) for split in ('train', 'test')}
  else:
    infos = selection.known(builder, data)
    if not infos:
      return {}
    selection.check(infos, data)
    images = {split: selection.size(infos, f'{split}_split', data) for split in ('train', 'test')}
  train, validation = split_validation(
      images['train'], data.validation_fraction, data.validation_seed)
  return {'train': len(train), 'validation': len(validation), 'test': images['test']}
