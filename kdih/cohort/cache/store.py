"""A table of teacher signals on disk, written block by block, each with its digest."""
import contextlib
import hashlib
import logging
import os
import pathlib
from typing import Any

import numpy as np
from etils import epath

from kdih import errors
from kdih.runtime import files, run_files

logger = logging.getLogger(__name__)

# A key of an identity that begins so ends with a version of jax. It is compared only if both
# identities have it: an upgrade of jax keeps the cache.
COMPUTATION = 'computation under jax '


class Store:
  """A folder with the rows of a table, `rows.bin`, and their description, `cache.json`.

  `cache.json` holds the digest of every complete block; an interrupted build resumes behind the
  last one.

  Args:
    folder: created if necessary.
    identity: what the rows were computed from, for JSON.
    shape: (images, slots, width).
    dtype: of the numbers.
    block: the number of images in a block, unless the folder has blocks of another number.

  Raises:
    ConfigError: the folder holds rows with another identity, or damaged ones.
  """

  def __init__(self, folder: epath.PathLike, identity: dict[str, Any], shape: tuple[int, int, int],
               dtype: np.dtype, block: int):
    self.folder = pathlib.Path(folder)  # epath cannot write to the middle of a file.
    self.folder.mkdir(parents=True, exist_ok=True)
    self._identity, self._shape, self._dtype = identity, shape, dtype
    before = run_files.read(self.folder / 'cache.json', run_files.CacheIndex)
    self.block = block
    self._digests: list[str] = []
    if before is not None:
      self._check(before)

  def _check(self, before: dict[str, Any]) -> None:
    stored, self._digests = before['identity'], before['digests']
    other = sorted(key for key in self._identity.keys() | stored.keys()
                   if self._identity.get(key) != stored.get(key)
                   and not (key.startswith(COMPUTATION)
                            and (key not in self._identity or key not in stored)))
    if other:
      raise errors.ConfigError(
          f'config.compute.cache: {self.folder} was made for something else; changed: '
          f'{", ".join(other)}. Remove the folder to build the cache anew')
    if self._digests:
      self.block = before['block']
    if (len(self._digests) - 1) * self.block >= self._shape[0]:
      raise self._damaged(f'it has {len(self._digests)} blocks of {self.block} images')
    for number, digest in enumerate(self._digests):
      if digest != hashlib.sha256(self._read(number)).hexdigest():
        raise self._damaged(f'block {number} is not the one that was written')
    logger.debug(f'cache: {self.folder} holds {self.done:,} of {self._shape[0]:,} images')

  def _damaged(self, reason: str) -> errors.ConfigError:
    return errors.ConfigError(f'config.compute.cache: {self.folder} is damaged ({reason}); remove '
                              'the folder to build the cache anew')

  @property
  def done(self) -> int:
    """Returns the number of images in complete blocks."""
    return min(len(self._digests) * self.block, self._shape[0])

  @property
  def _image_bytes(self) -> int:
    return self._shape[1] * self._shape[2] * self._dtype.itemsize

  def _read(self, number: int) -> bytes:
    path, start = self.folder / 'rows.bin', number * self.block
    count = min(self.block, self._shape[0] - start)
    if not files.exists(path):
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
        file.flush()
        os.fsync(file.fileno())  # Else a power cut could leave a digest without its block.
      self._digests.append(hashlib.sha256(content).hexdigest())
      run_files.write(self.folder / 'cache.json', {
          'identity': self._identity, 'block': self.block, 'digests': self._digests})
    except OSError as error:
      raise errors.TrainingError(
          f'config.compute.cache: {self.folder} cannot be written to ({error.strerror}); '
          'free some space and run the same command again to resume') from error

  def rows(self) -> np.ndarray:
    """Returns the whole table, mapped from the disk."""
    return np.memmap(self.folder / 'rows.bin', self._dtype, 'r', shape=self._shape)


def locked(folder: epath.Path) -> contextlib.AbstractContextManager:
  """Returns a context in which no other process builds the table in a folder."""
  folder.mkdir(parents=True, exist_ok=True)
  return files.locked(folder / '.lock',
                      waiting=f'cache: waiting for another process that builds {folder}')
