"""What tells the content of a data set from another's, wherever it lies on disk."""
from typing import Any

import ml_collections
import tensorflow_datasets as tfds

from kdih.data import datasets, selection
from kdih.data.image_folder import ImageFolder
from kdih.data.spec import SPLITS
from kdih.data.splits import Splits
from kdih.runtime import digests

_SAMPLE = 64  # Images of a split whose pixels are compared.


def identify(
    builder: tfds.core.DatasetBuilder, data: ml_collections.ConfigDict, splits: Splits
) -> dict[str, Any]:
  """Returns what JSON can keep to recognise the data set by; see `kdih.data.changes`.

  A copy of a data set is the same one, for neither its place nor times of modification count. Nor
  does it matter in which file format TFDS keeps it, or in how many shards.

  Args:
    builder: from `datasets.open_builder`.
    data: `config.data`.
    splits: from `source.open_splits`.

  Returns:
    {'classes': names in order, None if not known, 'splits': {'train', 'test': {'images', 'names',
    'pixels'}}}. 'images' counts those of the split; 'names' is a digest of what it is cut from: the
    paths and sizes of all files of its folders, or by TFDS's description the number of examples
    and of bytes; 'pixels' is one of a few images, as they are read, and their labels.

  Raises:
    DataError: an example is damaged.
  """
  prepared = datasets.reopen(builder)
  sizes = builder.sizes() if isinstance(builder, ImageFolder) else None
  return {
      'classes': list(datasets.describe(prepared, data).classes) or None,
      'splits': {split: {
          'images': splits.size(split),
          'names': digests.of_json(_stored(prepared, sizes, f'{split}_split', data)),
          'pixels': digests.of(splits.sample(split, _SAMPLE)),
      } for split in SPLITS}}


def _stored(prepared: tfds.core.DatasetBuilder, sizes: dict[str, int] | None, field: str,
            data: ml_collections.ConfigDict) -> dict[str, Any]:
  infos = prepared.info.splits
  parts = selection.parts(infos, field, data)
  if sizes is None:
    return {name: [infos[name].num_examples, infos[name].num_bytes] for name in parts}
  return {name: size for name, size in sizes.items() if name.partition('/')[0] in parts}
