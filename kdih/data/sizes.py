"""The numbers of images to train, validate and test with, before the data set is prepared."""
import ml_collections

from kdih.data import selection, source
from kdih.data.datasets import DataSet
from kdih.data.splits import validation_sizes


def known(builder: DataSet, data: ml_collections.ConfigDict) -> dict[str, int]:
  """Returns the numbers of images {'train', 'validation', 'test'}; {} if they are unknown yet.

  Raises:
    ConfigError: a split cannot be read, or the splits share images.
  """
  if builder.is_prepared():
    splits = source.open_splits(builder, data)
    images = {split: splits.size(split) for split in ('train', 'test')}
  else:
    infos = selection.known(builder)
    if not infos:
      return {}
    selection.check(infos, data)
    images = {split: selection.size(infos, f'{split}_split', data) for split in ('train', 'test')}
  train, validation = validation_sizes(images['train'], data.validation_fraction)
  return {'train': train, 'validation': validation, 'test': images['test']}
