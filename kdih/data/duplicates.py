"""A warning of images of a folder that are in both splits, whatever their names."""
import hashlib
import logging
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence

import ml_collections

from kdih.data import selection
from kdih.data.datasets import DataSet
from kdih.data.image_folder import ImageFile, ImageFolder

logger = logging.getLogger(__name__)

_FIELDS = ('train_split', 'test_split')
_END = 4096  # Bytes by which most images of one size differ.


def warn_if_shared(builder: DataSet, data: ml_collections.ConfigDict) -> None:
  """Warns of test images that are, byte for byte, among the train images of a folder.

  Data sets of other kinds are not examined.

  Args:
    builder: from `datasets.open_builder`.
    data: `config.data`.

  Raises:
    DataError: a file of the folder cannot be read.
  """
  if not isinstance(builder, ImageFolder):
    return
  alike = _alike(builder, [selection.parts(builder.info.splits, field, data) for field in _FIELDS])
  train, test = ({file.name for file in builder.files(data[field])} for field in _FIELDS)
  shared: dict[str, str] = {}
  for group in alike:
    names = {file.name for file in group}
    if names & train:
      shared |= dict.fromkeys(names & test, min(names & train))
  if shared:
    first, count = min(shared), len(shared)
    logger.warning(
        f'data: {count:,} {"image of test is" if count == 1 else "images of test are"} also in '
        f'train, such as {first} ({shared[first]})')


def _alike(builder: ImageFolder, folders: Sequence[Collection[str]]) -> list[list[ImageFile]]:
  """Returns groups of files with one content; each has a file from every set of folders."""
  keys: tuple[Callable[[ImageFile], Hashable], ...] = (  # The cheapest first; most differ early.
      lambda file: file.size,
      lambda file: hashlib.sha256(builder.content(file, _END)).digest(),
      lambda file: hashlib.sha256(builder.content(file)).digest())
  groups = [builder.all_files()]
  for key in keys:
    groups = [same for group in groups for same in _grouped(group, key)
              if len(same) > 1 and all(any(file.name.partition('/')[0] in wanted for file in same)
                                       for wanted in folders)]
  return groups


def _grouped(
    files: Iterable[ImageFile], key: Callable[[ImageFile], Hashable]
) -> Iterable[list[ImageFile]]:
  groups: dict[Hashable, list[ImageFile]] = {}
  for file in files:
    groups.setdefault(key(file), []).append(file)
  return groups.values()
