"""What orbax reads and writes: items of a folder, such as variables and their description."""
import contextlib
import errno
import gc
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from kdih import errors
from kdih.runtime import devices, files, processes

# How messages of tensorstore and jax begin if the arrays or the list of their names are missing.
_MISSING = ('NOT_FOUND', 'pytree structure error')
_PAUSES = (0.0, 0.5, 2.0)  # Seconds before each new attempt to read.
_MAX_DESCRIPTION = 2**26  # Bytes of a file that describes arrays.

Shapes = dict[str, tuple[int, ...]]


def export(path: epath.PathLike, variables: Any, meta: dict) -> None:
  """Writes variables and their JSON-able description; replaces the folder `path`.

  Raises:
    OSError: the system cannot write, such as to a full disk.
  """
  variables = devices.to_host(variables)
  with _checkpointer() as checkpointer, _system_errors(path):
    checkpointer.save(files.absolute(path), force=True, args=ocp.args.Composite(
        variables=ocp.args.StandardSave(variables), meta=ocp.args.JsonSave(meta)))
    require_whole(path, 'variables', variables)


def require_whole(path: epath.PathLike, item: str, tree: Any) -> None:
  """Checks that an item that has been written has the arrays of `tree`; reads none of them.

  If the system cannot list a folder, orbax leaves arrays out and says nothing. Only the first
  process checks: on a network file system the others may not see the files yet.

  Raises:
    OSError: arrays are missing.
  """
  if not processes.is_first():
    return
  number = errno.EIO
  try:
    if shapes(path, item) == {name: np.shape(leaf) for name, leaf in named_leaves(tree).items()}:
      return
  except Exception as error:  # orbax and tensorstore raise many kinds.
    number = files.system_error(error) or number
  raise OSError(number, os.strerror(number), str(path))


def read_meta(path: epath.PathLike) -> dict:
  """Returns the description of exported variables. Raises as `read`."""
  return read(path, meta=ocp.args.JsonRestore())['meta']


def restore(path: epath.PathLike) -> Any:
  """Returns exported variables of any structure, as numpy arrays. Raises as `read`."""
  variables = read(path, variables=ocp.args.StandardRestore())['variables']
  return jax.tree.map(np.asarray, variables)


def shapes(path: epath.PathLike, item: str) -> Shapes:
  """Returns the shapes of the arrays of an item by their names, which contain '/'; reads no array.

  Raises:
    Exception: as `read`.
    ValueError: the parts in which an array is stored are larger than the array.
  """
  def attempt():
    _require_sound(path)
    with _checkpointer() as checkpointer:
      return checkpointer.metadata(files.absolute(path)).item_metadata[item]

  stored = _try_again(attempt, path)
  found = named_leaves(stored.tree)
  for name, array in found.items():
    chunk = array.storage.chunk_shape if array.storage else array.shape
    if any(part > max(size, 1) for part, size in zip(chunk, array.shape, strict=True)):
      raise ValueError(f'{name} of the shape {array.shape} is stored in parts of {chunk}')
  return {name: tuple(array.shape) for name, array in found.items()}


def named_leaves(tree: Any) -> dict[str, Any]:
  """Returns the leaves of a tree by their paths, which are the names of arrays in orbax, too."""
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf
          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def read(path: epath.PathLike, **items: ocp.args.CheckpointArgs) -> Any:
  """Returns items of a folder; tries again before it fails.

  Args:
    path: the folder.
    **items: how to restore each item.

  Raises:
    OSError: the system cannot read now, such as with too many open files. A file that is missing
      raises FileNotFoundError.
    Exception: of many kinds, if a file is damaged; see `damage`.
  """
  def attempt():
    _require_sound(path)
    with _checkpointer() as checkpointer:
      return checkpointer.restore(files.absolute(path), args=ocp.args.Composite(**items))

  return _try_again(attempt, path)


def require_step(directory: epath.Path, step: int) -> None:
  """Checks what orbax's manager reads of a checkpoint, other than its items. Raises as `read`."""
  names = ocp.path.step.standard_name_format()
  _try_again(lambda: names.find_step(directory, step).commit_timestamp, directory)


def _try_again(attempt: Callable[[], Any], path: epath.PathLike) -> Any:
  """Returns what `attempt` does; tries again after an error, for orbax hides those of the system.

  It may say that a file is missing which the system could not open.
  """
  for number, pause in enumerate(_PAUSES):
    try:
      found = attempt()
    except Exception as error:  # orbax and tensorstore raise many kinds.
      if files.system_error(error):
        time.sleep(pause)
    else:
      if number:
        gc.collect()  # Tasks that failed say so when they go: here nobody hears them.
      return found
  with _system_errors(path):
    return attempt()


@contextlib.contextmanager
def _system_errors(path: epath.PathLike) -> Iterator[None]:
  """Raises what the system cannot do as OSError, whatever orbax and tensorstore made of it."""
  try:
    yield
  except Exception as error:
    if number := files.system_error(error):
      raise OSError(number, os.strerror(number), str(path)) from error
    raise


def _require_sound(path: epath.PathLike) -> None:
  """Raises ValueError if a file would keep its reader waiting, or fill the memory.

  Raises:
    OSError: a folder cannot be listed; orbax would say that its files are missing.
  """
  def fail(error: OSError) -> None:
    raise error

  for folder, folders, names in () if files.is_remote(path) else os.walk(path, onerror=fail):
    for name in folders:  # `os.walk` does not follow it.
      if os.path.islink(os.path.join(folder, name)):
        raise ValueError(f'{name} is a link to a folder')
    for name in names:
      file = os.path.join(folder, name)
      if not files.is_file(file):
        raise ValueError(f'{name} is not a file')
      holds_arrays = os.path.basename(folder) == 'd'
      if not holds_arrays and os.path.getsize(file) > _MAX_DESCRIPTION:
        raise ValueError(f'{name} is larger than {_MAX_DESCRIPTION >> 20} MiB')


def damage(error: Exception) -> str:
  """Returns in a few words what is damaged, by an error of `read`.

  Raises:
    OSError: `error` itself, if nothing is known to be damaged, because the system cannot read now.
  """
  if files.system_error(error):
    raise error
  # An item or a file of an item is missing.
  if isinstance(error, KeyError | FileNotFoundError) or str(error).startswith(_MISSING):
    return 'it is incomplete'
  return reason(error)


def reason(error: Exception) -> str:
  """Returns the message of an error in a few words; tensorstore's messages are long."""
  if number := files.own_number(error):
    return os.strerror(number)
  return errors.first_line(error).partition(' [tensorstore_spec')[0].rpartition(': Error ')[2]


def _checkpointer() -> ocp.Checkpointer:
  return ocp.Checkpointer(ocp.CompositeCheckpointHandler(
      state=ocp.StandardCheckpointHandler(), variables=ocp.StandardCheckpointHandler(),
      meta=ocp.JsonCheckpointHandler()))
