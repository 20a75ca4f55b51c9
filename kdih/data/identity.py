"""The identity of a data set: digests by which its content is recognised, wherever it is stored."""
from typing import Any

import ml_collections

from kdih.data import datasets, selection
from kdih.data.datasets import DataSet
from kdih.data.image_folder import ImageFolder
from kdih.data.spec import SPLITS
from kdih.data.splits import Splits
from kdih.runtime import digests

_SAMPLE = 64  # Images of a split whose pixels are compared.


def identify(
    builder: DataSet, data: ml_collections.ConfigDict, splits: Splits
) -> dict[str, Any]:
  """Returns the identity of a data set, which JSON can store; see `kdih.data.changes`.

  It is the same for a copy of the data set: it depends neither on the place nor on modification
  times, nor on the file format and the number of shards of a TFDS data set.

  Args:
    builder: from `datasets.open_builder`.
    data: `config.data`.
    splits: from `source.open_splits`.

  Returns:
    {'classes': names in order, None if unknown, 'splits': {'train', 'test': {'images', 'names',
    'pixels'}}}. 'images' is the number of images; 'names' is a digest of all the splits that this
    one is cut from, which are described by the paths and sizes of their files, or by TFDS's numbers
    of examples and bytes; 'pixels' is a digest of the decoded pixels and labels of a few images.

  Raises:
    DataError: an example is damaged.
  """
  prepared = datasets.reopen(builder)
  return {
      'classes': list(datasets.describe(prepared, data).classes) or None,
      'splits': {split: {
          'images': splits.size(split),
          'names': digests.of_json(_stored(prepared, f'{split}_split', data)),
          'pixels': digests.of_rows(min(_SAMPLE, splits.size(split)),
                                    splits.sample(split, _SAMPLE)),
      } for split in SPLITS}}


def _stored(prepared: DataSet, field: str, data: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns {name: size} of all that the split `config.data.<field>` is cut from."""
  infos = prepared.info.splits
  parts = selection.parts(infos, field, data)
  if isinstance(prepared, ImageFolder):
    return {file.name: file.size
            for file in prepared.all_files() if file.name.partition('/')[0] in parts}
  return {name: [infos[name].num_examples, infos[name].num_bytes] for name in parts}
