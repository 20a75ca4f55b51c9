"""Images of a folder that are there to train with and, under another name, to test with too."""
import hashlib
import logging
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence

import ml_collections
import numpy as np
import tensorflow_datasets as tfds

from kdih.data import datasets, selection
from kdih.data.image_folder import ImageFolder

logger = logging.getLogger(__name__)

_FIELDS = ('train_split', 'test_split')
_END = 4096  # Bytes by which most images of one size differ.


def say_shared(builder: tfds.core.DatasetBuilder, data: ml_collections.ConfigDict) -> None:
  """Says how many images to test with are, byte for byte, among those to train with, if any are.

  Of other data sets than a folder of images nothing is said.

  Args:
    builder: from `datasets.open_builder`; the data set is prepared.
    data: `config.data`.

  Raises:
    DataError: a file of the folder cannot be read.
  """
  if not isinstance(builder, ImageFolder):
    return
  prepared = datasets.reopen(builder)
  infos = prepared.info.splits
  alike = _alike(builder, [selection.parts(infos, field, data) for field in _FIELDS])
  if not alike:
    return
  train, test = (_files(builder, prepared, field, data) for field in _FIELDS)
  shared = {name: min(train.intersection(group)) for group in alike
            if not train.isdisjoint(group) for name in test.intersection(group)}
  if shared:
    first, count = min(shared), len(shared)
    logger.warning(
        f'data: {count:,} {"image of test is" if count == 1 else "images of test are"} also in '
        f'train, such as {first} ({shared[first]})')


def _alike(builder: ImageFolder, folders: Sequence[Collection[str]]) -> list[list[str]]:
  """Returns groups of files of one content, each with some of every set of folders."""
  sizes = builder.sizes()
  keys: tuple[Callable[[str], Hashable], ...] = (  # From the cheapest; most files differ early.
      sizes.__getitem__,
      lambda name: hashlib.sha256(builder.content(name, _END)).digest(),
      lambda name: hashlib.sha256(builder.content(name)).digest())
  groups = [list(sizes)]
  for key in keys:
    groups = [found for group in groups for found in _grouped(group, key)
              if len(found) > 1 and all(any(_folder(name) in wanted for name in found)
                                        for wanted in folders)]
  return groups


def _grouped(names: Iterable[str], key: Callable[[str], Hashable]) -> Iterable[list[str]]:
  groups: dict[Hashable, list[str]] = {}
  for name in names:
    groups.setdefault(key(name), []).append(name)
  return groups.values()


def _folder(name: str) -> str:
  return name.partition('/')[0]


def _files(builder: ImageFolder, prepared: tfds.core.DatasetBuilder, field: str,
           data: ml_collections.ConfigDict) -> set[str]:
  """Returns the files that `config.data.<field>` selects."""
  files: set[str] = set()
  for folder, chosen in selection.select(prepared.info.splits, field, data).items():
    if chosen.all():
      files.update(name for name in builder.sizes() if _folder(name) == folder)
    elif chosen.any():  # Which these are, the copy tells, where they are in a mixed order.
      examples = prepared.as_data_source(folder, decoders={'image': tfds.decode.SkipDecoding()})
      files.update(f'{folder}/{examples[int(index)]["file"].decode()}'
                   for index in np.flatnonzero(chosen))
  return files
