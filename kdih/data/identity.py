"""What tells the content of a data set from another's, wherever it lies on disk."""
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import tensorflow_datasets as tfds

from kdih.data import datasets, selection
from kdih.data.image_folder import ImageFolder
from kdih.data.splits import Splits
from kdih.runtime import digests

_SPLITS = ('train', 'test')
_SAMPLE = 64  # Images of a split whose pixels are compared.
_NAMED = 3  # Classes that a line names.


def identify(
    builder: tfds.core.DatasetBuilder, data: ml_collections.ConfigDict, splits: Splits
) -> dict[str, Any]:
  """Returns what JSON can keep to recognise the data set by; see `differences`.

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
      } for split in _SPLITS}}


def _stored(prepared: tfds.core.DatasetBuilder, sizes: dict[str, int] | None, field: str,
            data: ml_collections.ConfigDict) -> dict[str, Any]:
  infos = prepared.info.splits
  parts = selection.parts(infos, field, data)
  if sizes is None:
    return {name: [infos[name].num_examples, infos[name].num_bytes] for name in parts}
  return {name: size for name, size in sizes.items() if name.partition('/')[0] in parts}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
  """Returns what has changed between two results of `identify`, in plain lines, most telling first.

  What one of them does not know is not compared, and what a change brings along is not listed: a
  new class means other names, and more images mean other pixels.
  """
  classes = _changed_classes(before.get('classes') or (), now.get('classes') or ())
  counts, contents = [], []
  for split in _SPLITS:
    was, has = (identity.get('splits', {}).get(split, {}) for identity in (before, now))
    changed = [key for key in ('images', 'names', 'pixels')
               if was.get(key) is not None and has.get(key) not in (None, was[key])]
    if 'images' in changed:
      counts.append(_changed_count(split, has['images'] - was['images']))
    elif 'names' in changed:
      contents.append(f'images of {split} were replaced (other names or sizes)')
    elif 'pixels' in changed:
      contents.append(f'the pixels of {split} have changed')
  return [*classes, *counts, *([] if classes else contents)]


def _changed_classes(was: Sequence[str], has: Sequence[str]) -> list[str]:
  if not was or not has or list(was) == list(has):
    return []
  before, now = set(was), set(has)
  new, gone = ([name for name in names if name not in others]
               for names, others in ((has, before), (was, now)))
  if new or gone:
    return [f'{_listed(names)} {what}' for names, what in ((new, 'new'), (gone, 'gone')) if names]
  moved = next(name for name, other in zip(was, has, strict=True) if name != other)
  return [f'the classes are in another order: {moved!r} is number {has.index(moved)} now and was '
          f'{was.index(moved)}']


def _listed(names: Sequence[str]) -> str:
  if len(names) == 1:
    return f'the class {names[0]!r} is'
  rest = len(names) - _NAMED
  named = ', '.join(map(repr, names[:_NAMED])) + (f' and {rest:,} more' if rest > 0 else '')
  return f'the classes {named} are'


def _changed_count(split: str, more: int) -> str:
  images = f'{abs(more):,} image{"s"[:abs(more) > 1]} of {split}'
  if more > 0:
    return f'{images} {"was" if more == 1 else "were"} added'
  return f'{images} {"is" if more == -1 else "are"} gone'
