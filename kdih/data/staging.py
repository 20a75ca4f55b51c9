"""Prepared data sets on an object store, copied once to the local disk, where they can be read."""
import hashlib
import logging
import shutil
import uuid
from collections.abc import Iterator

import filelock
from etils import epath

from kdih import errors

logger = logging.getLogger(__name__)


def folder(data_dir: str) -> epath.Path:
  """Returns the local folder for copies of the data sets in `data_dir`; it may not be there yet."""
  digest = hashlib.sha256(data_dir.encode()).hexdigest()[:12]
  return epath.Path('~/.cache/kdih/data').expanduser() / digest


def staged(data_dir: str, name: str) -> str:
  """The local folder that holds a copy of a data set, as TFDS keeps it in `data_dir`.

  Args:
    data_dir: address of a folder of TFDS data sets, such as gs://bucket/tfds.
    name: of the data set; ':', '/' and what follows, its config or version, are left out.

  Raises:
    DataError: there is no such data set.
  """
  dataset = name.replace(':', '/').partition('/')[0]
  source = epath.Path(data_dir) / dataset
  cache = folder(data_dir)
  cache.mkdir(parents=True, exist_ok=True)
  with filelock.FileLock(cache / '.lock'):
    if not (cache / dataset).exists():
      _copy(source, cache / dataset)
  return str(cache)


def _copy(source: epath.Path, target: epath.Path) -> None:
  """Copies a folder; whenever the process dies, `target` is whole or absent."""
  if not source.exists():
    raise errors.DataError(f'config.data.data_dir: there is no {source.name} in {source.parent}; '
                           f'prepare it on a local disk and copy it to {source}')
  logger.info(f'data: copying {source} to {target}, once')
  partial = target.with_name(f'.{target.name}.{uuid.uuid4().hex}')
  for path in _files(source):
    copy = partial / path.relative_to(source)
    copy.parent.mkdir(parents=True, exist_ok=True)
    with path.open('rb') as original, copy.open('wb') as file:
      shutil.copyfileobj(original, file)
  partial.rename(target)


def _files(folder: epath.Path) -> Iterator[epath.Path]:
  for path in folder.iterdir():
    if path.is_dir():
      yield from _files(path)
    else:
      yield path
