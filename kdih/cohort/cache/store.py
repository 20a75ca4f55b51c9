"""A table of what teachers say on disk, written block by block, each with its digest."""
import hashlib
import logging
import pathlib
from typing import Any

import filelock
import numpy as np
from etils import epath

from kdih import errors
from kdih.runtime import run_files

logger = logging.getLogger(__name__)

# In an identity, what is followed by a version is compared only where both sides have that version,
# so that an upgrade of jax keeps the cache.
COMPUTATION = 'computation under jax '


class Store:
  """A `folder` with the rows, `rows.bin`, and what they are, `cache.json`.

  `cache.json` names the digest of every block that is whole; a build that was cut off goes on
  behind the last of them.

  Args:
    folder: made where it is not there.
    identity: JSON-able, of what the rows come from.
    shape: (images, slots, width).
    dtype: of the numbers.
    block: images in a block, unless the folder was begun with another number.

  Raises:
    ConfigError: the folder holds rows that come from something else, or damaged ones.
  """

  def __init__(self, folder: epath.PathLike, identity: dict[str, Any], shape: tuple[int, int, int],
               dtype: np.dtype, block: int):
    self.folder = pathlib.Path(folder)  # For epath writes files only from their start.
    self.folder.mkdir(parents=True, exist_ok=True)
    self._identity, self._shape, self._dtype = identity, shape, dtype
    before = run_files.read(self.folder / 'cache.json', run_files.CacheIndex)
    self.block = block
    self._digests: list[str] = []
    if before is not None:
      self._check(before)

  def _check(self, before: dict[str, Any]) -> None:
    stored, self.block, self._digests = before['identity'], before['block'], before['digests']
    other = sorted(key for key in self._identity.keys() | stored.keys()
                   if self._identity.get(key) != stored.get(key)
                   and not (key.startswith(COMPUTATION)
                            and (key not in self._identity or key not in stored)))
    if other:
      raise errors.ConfigError(
          f'config.compute.cache: {self.folder} was made for something else; changed: '
          f'{", ".join(other)}. Remove the folder to have it built anew')
    for number, digest in enumerate(self._digests):
      if digest != hashlib.sha256(self._read(number)).hexdigest():
        raise self._damaged(f'block {number} is not the one that was written')
    logger.debug(f'cache: {self.folder} holds {self.done:,} of {self._shape[0]:,} images')

  def _damaged(self, reason: str) -> errors.ConfigError:
    return errors.ConfigError(f'config.compute.cache: {self.folder} is damaged ({reason}); remove '
                              'the folder to have it built anew')

  @property
  def done(self) -> int:
    """Images in blocks that are whole."""
    return min(len(self._digests) * self.block, self._shape[0])

  @property
  def _image_bytes(self) -> int:
    return self._shape[1] * self._shape[2] * self._dtype.itemsize

  def _read(self, number: int) -> bytes:
    path, start = self.folder / 'rows.bin', number * self.block
    count = min(self.block, self._shape[0] - start)
    if not path.exists():
      return b''
    with path.open('rb') as file:
      file.seek(start * self._image_bytes)
      return file.read(count * self._image_bytes)

  def add(self, rows: np.ndarray) -> None:
    """Writes the next block."""
    content = np.ascontiguousarray(rows, self._dtype).tobytes()
    path = self.folder / 'rows.bin'
    path.touch()
    try:
      with path.open('r+b') as file:
        file.seek(self.done * self._image_bytes)
        file.write(content)
      self._digests.append(hashlib.sha256(content).hexdigest())
      run_files.write(self.folder / 'cache.json', {
          'identity': self._identity, 'block': self.block, 'digests': self._digests})
    except OSError as error:
      raise errors.TrainingError(
          f'config.compute.cache: {self.folder} cannot be written to ({error.strerror}); make '
          'room, and the same command goes on') from error

  def rows(self) -> np.ndarray:
    """The whole table, read from the disk when it is asked for."""
    return np.memmap(self.folder / 'rows.bin', self._dtype, 'r', shape=self._shape)


def lock(folder: epath.Path) -> filelock.BaseFileLock:
  """Of the folder, over all processes; says so where it has to wait for another one."""
  folder.mkdir(parents=True, exist_ok=True)
  held = filelock.FileLock(folder / '.lock')
  try:
    held.acquire(blocking=False)
  except filelock.Timeout:
    logger.info(f'cache: another process is building {folder}; waits for it')
    held.acquire()
  return held
