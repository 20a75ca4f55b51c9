"""Copies of prepared data sets on an object store, kept on the local disk to be read from there."""
import hashlib
import logging
import os
import pathlib
import tempfile

import fsspec

from kdih import errors
from kdih.runtime import files

logger = logging.getLogger(__name__)

_locks: dict[pathlib.Path, int] = {}  # Descriptors of the locks of the copies that are used here.


def stage(data_dir: str, name: str) -> str:
  """Copies a data set to the local disk, unless a copy of the same files is there.

  The copy is made anew when the name, size or any property that the store lists of a file has
  changed. Copies of earlier versions of the data set are then removed, unless a process uses them.
  The copy that is returned is in use until this process ends.

  Args:
    data_dir: address of a folder of TFDS data sets, such as gs://bucket/tfds.
    name: of the data set, with or without a config and version.

  Returns:
    The local `data_dir` that holds the copy.

  Raises:
    DataError: there is no such data set, or the store cannot be read.
  """
  dataset, copies = _places(data_dir, name)
  source = f'{data_dir.rstrip("/")}/{dataset}'
  try:
    store, path = fsspec.url_to_fs(source)
    store.invalidate_cache()
    listed = store.find(path, detail=True)
  except Exception as error:  # Each store's library raises its own kinds.
    raise _unreadable(source, error) from error
  if not listed:
    raise errors.DataError(f'config.data.data_dir: there is no {dataset} in {data_dir}; '
                           f'prepare it on a local disk and copy it to {source}')
  content = sorted((file, sorted(map(str, found.items()))) for file, found in listed.items())
  target = copies / hashlib.sha256(repr(content).encode()).hexdigest()[:12]
  copies.mkdir(parents=True, exist_ok=True)
  with files.locked(copies.with_suffix('.lock'),
                    waiting=f'data: waits for another copy of {source}'):
    for other in copies.iterdir():  # Copies of earlier versions, or left by a killed process.
      if other != target and not _is_used(other):
        with tempfile.TemporaryDirectory(dir=copies, prefix='.') as removed:
          other.rename(f'{removed}/{other.name}')  # What is half removed is taken for no copy.
    if not target.exists():
      logger.info(f'data: copying {source} to {target}, once')
      with tempfile.TemporaryDirectory(dir=copies, prefix='.') as partial:
        try:
          store.get(path, f'{partial}/{target.name}/{dataset}', recursive=True)
        except Exception as error:
          raise _unreadable(source, error) from error
        (pathlib.Path(partial) / target.name).rename(target)
    _use(target)
  return str(target)


def staged(data_dir: str, name: str) -> str:
  """Returns the local `data_dir` that `stage` has returned last; it may not exist yet."""
  _, copies = _places(data_dir, name)
  return str(max(copies.glob('[!.]*'), key=os.path.getmtime, default=copies))


def _use(copy: pathlib.Path) -> None:
  """Keeps other processes from removing a copy, until this one ends; `stage` holds its lock."""
  lock = os.open(copy / '.lock', os.O_RDWR | os.O_CREAT)
  files.flock(lock, shared=True)
  if copy in _locks:  # The copy has been used before, and perhaps removed by hand since.
    os.close(_locks[copy])
  _locks[copy] = lock
  os.utime(copy)  # `staged` returns the copy that was used last.


def _is_used(copy: pathlib.Path) -> bool:
  """Returns whether a process may use a copy: it does, or the file system has no locks."""
  with open(copy / '.lock', 'ab') as lock:
    return not files.flock(lock.fileno(), wait=False)


def _places(data_dir: str, name: str) -> tuple[str, pathlib.Path]:
  """Returns the name of a data set's folder, and the local folder for its copies."""
  dataset = name.replace(':', '/').partition('/')[0]
  digest = hashlib.sha256(data_dir.encode()).hexdigest()[:12]
  return dataset, pathlib.Path('~/.cache/kdih/data').expanduser() / digest / dataset


def _unreadable(source: str, error: Exception) -> errors.DataError:
  return errors.DataError(f'config.data.data_dir: {source} cannot be copied to the local disk '
                          f'({errors.first_line(error)})')
