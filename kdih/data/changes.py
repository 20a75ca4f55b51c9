"""Differences between two states of a data set, in words."""
from collections.abc import Mapping, Sequence
from typing import Any

from kdih.data.spec import SPLITS

_NAMED = 3  # The number of classes that a line names.


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
  """Returns the changes from one result of `kdih.data.identity.identify` to another, as lines.

  A part that is unknown on either side is not compared. Consequences of a listed change are left
  out: a new class brings new names of files, and more images bring other pixels.
  """
  classes = _changed_classes(before.get('classes') or (), now.get('classes') or ())
  counts, contents = [], []
  for split in SPLITS:
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
