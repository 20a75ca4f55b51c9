"""What a process does to files, one event after the other: Python's audit events, by their paths.

Python raises an audit event before each operation but `os.stat`. A hook sees it, and can end the
process before the operation, or raise the error that the operating system would raise in its place.
What libraries in C++ do is not seen: tensorstore's files, and TensorFlow's.
"""
import functools
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Where an event has its paths, and the descriptor of the folder to which each is relative.
_PLACES = {
    'os.rename': ((0, 2), (1, 3)), 'os.remove': ((0, 1),), 'os.rmdir': ((0, 1),),
    'os.mkdir': ((0, 2),), 'os.truncate': ((0, None),), 'os.link': ((1, 3),),
    'os.symlink': ((1, 2),), 'shutil.copyfile': ((1, None),), 'shutil.move': ((0, None),),
    'shutil.rmtree': ((0, 1),), 'open': ((0, None),), 'os.listdir': ((0, None),),
    'os.scandir': ((0, None),)}
_READS = ('read', 'os.listdir', 'os.scandir')


class Event(NamedTuple):
  """An operation on a file that is about to begin.

  Attributes:
    name: of Python's audit event, such as 'os.rename'; 'read' or 'write' for 'open'; 'stat'.
    path: of the file, relative to the watched folder.
  """

  name: str
  path: str

  def __str__(self):
    return f'{self.name} {self.path}'

  @classmethod
  def parse(cls, text: str) -> 'Event':
    """Returns the event with this text."""
    return cls(*text.split(' ', 1))

  @property
  def does(self) -> str:
    """Returns whether the operation changes what the folder holds: 'change', 'read' or 'stat'."""
    return 'stat' if self.name == 'stat' else 'read' if self.name in _READS else 'change'

  @property
  def changes(self) -> bool:
    """Returns whether the operation changes what the folder holds."""
    return self.does == 'change'


def watch(folder: str, react: Callable[[Event], Any]) -> None:
  """Calls `react` before each operation of this process on files below `folder`, for good."""
  prefix = f'{folder}{os.sep}'

  def hook(name: str, args: tuple) -> None:
    if name not in _PLACES:
      return
    for where in _PLACES[name]:
      path = _path(args, *where)
      if path.startswith(prefix):
        if name == 'open':
          name = 'write' if (args[2] or 0) & _WRITING else 'read'
        react(Event(name, path.removeprefix(prefix)))
        return

  sys.addaudithook(hook)
  stat = os.stat

  @functools.wraps(stat)
  def watched(path: Any, *args: Any, **kwargs: Any) -> os.stat_result:
    named = '' if isinstance(path, int) else os.path.abspath(os.fsdecode(path))
    if named.startswith(prefix):
      react(Event('stat', named.removeprefix(prefix)))
    return stat(path, *args, **kwargs)

  os.stat = watched


def _path(args: tuple, position: int, relative_to: int | None) -> str:
  """Returns the absolute path of an event; '' if it has none."""
  if position >= len(args) or isinstance(args[position], int) or args[position] is None:
    return ''
  path = os.fsdecode(args[position])
  folder = args[relative_to] if relative_to is not None and relative_to < len(args) else None
  if isinstance(folder, int) and folder >= 0:
    return os.path.join(os.readlink(f'/proc/self/fd/{folder}'), path)
  return path if path.startswith(os.sep) else os.path.abspath(path)
