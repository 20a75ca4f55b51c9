"""Where metrics go: `metrics.jsonl`, one line of JSON each time, and TensorBoard events."""
import contextlib
import io
import logging
import sys
from collections.abc import Iterator

import msgspec
from etils import epath

from kdih import errors
from kdih.runtime import files, processes, run_files, tfrecords
from kdih.runtime.files import is_remote

logger = logging.getLogger(__name__)

_MAX_LINE = 2**20  # Bytes; no line that kdih writes is longer.

Line = dict[str, int | float]  # 'step', the number of updates, and metrics by name.


class MetricWriter:
  """Appends to `metrics.jsonl`, and writes TensorBoard events beside it; the first process does.

  Args:
    directory: the folder of the phase.
    start_step: what was written of later steps is removed, because the resumed run writes it again.
    events: whether to write TensorBoard events.
  """

  def __init__(self, directory: epath.PathLike, start_step: int, events: bool = True):
    self._path = epath.Path(directory) / 'metrics.jsonl'
    self._first, self._events = processes.is_first(), None
    self._lines: list[bytes] = []  # In an object store, where nothing can be appended.
    if self._first:
      lines = [_encoded(line) for line in read_metrics(self._path) if line['step'] <= start_step]
      files.write_atomically(self._path, b''.join(lines))
      self._lines = lines if is_remote(self._path) else []
      self._events = _summary_writer(self._path.parent, start_step) if events else None

  def write(self, step: int, scalars: dict[str, float]) -> None:
    """Writes the scalars after `step` updates; a name may contain '/'."""
    if not self._first:
      return
    line = _encoded({'step': step, **scalars})
    if is_remote(self._path):
      self._lines.append(line)
    else:
      with self._path.open('ab') as file:
        file.write(line)
    if self._events:
      with _os_errors():
        self._events.write_scalars(step, scalars)

  def flush(self) -> None:
    """Writes the file to an object store."""
    if self._first and is_remote(self._path):
      self._path.write_bytes(b''.join(self._lines))

  def close(self) -> None:
    """Flushes the file and closes the events."""
    self.flush()
    if self._events:
      with _os_errors():
        self._events.close()


def _encoded(line: Line) -> bytes:
  return run_files.encode(line) + b'\n'


def read_metrics(path: epath.PathLike) -> list[Line]:
  """Returns the lines of a `metrics.jsonl`; [] if there is no file.

  Damaged lines are left out, with one warning. The last line is left out silently if it does not
  end: the process was killed while it wrote the line. Metrics that were not finite are left out.
  """
  path = epath.Path(path)
  found, damaged = [], 0
  for text in _lines(path) if files.is_file(path) else ():
    try:
      numbers = msgspec.json.decode(text, type=dict[str, run_files.Finite | None])
      step = msgspec.json.decode(text, type=run_files.MetricsLine).step
      found.append({name: value for name, value in numbers.items() if value is not None}
                   | {'step': step})
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
      damaged += 1
  if damaged:
    logger.warning(f'{errors.in_line(path)}: {damaged} of its lines are damaged and left out')
  return found


def _lines(path: epath.Path) -> Iterator[bytes]:
  """Yields the lines that end, in parts of at most `_MAX_LINE` bytes."""
  with path.open('rb') as raw:
    file = io.BufferedReader(raw)  # The file of an object store cannot bound a line.
    while (line := file.readline(_MAX_LINE)).endswith(b'\n') or len(line) == _MAX_LINE:
      yield line


def _summary_writer(directory: epath.Path, start_step: int):
  try:
    from clu import metric_writers  # Imports TensorFlow, which takes seconds.
  except ImportError as error:
    logger.warning(f'no TensorBoard events: {error}')
    return None
  with _os_errors():
    for path in directory.glob('events.out.tfevents.*'):
      if files.is_file(path):
        _cut_events(path, start_step)
    return metric_writers.SummaryWriter(str(directory))


def _cut_events(path: epath.Path, start_step: int) -> None:
  """Removes the events of later steps from a file, and what is no event or does not end."""
  from google.protobuf.message import DecodeError
  from tensorboard.compat.proto import event_pb2
  from tensorboard.summary.writer import record_writer

  content, has_values = io.BytesIO(), False
  writer = record_writer.RecordWriter(content)
  for record in _records(path):
    with contextlib.suppress(DecodeError):
      event = event_pb2.Event.FromString(record)
      if event.step <= start_step:
        writer.write(record)
        has_values |= bool(event.summary.value)
  if has_values:
    files.write_atomically(path, content.getvalue())
  else:
    path.unlink()


def _records(path: epath.Path) -> Iterator[bytes]:
  """Yields the records of a file, up to one that is damaged or does not end."""
  with path.open('rb') as file:
    def read(start: int, size: int) -> bytes:
      file.seek(start)
      return file.read(size)

    with contextlib.suppress(ValueError):  # Such as of a process that was killed while it wrote.
      for start, size in tfrecords.places(read, files.size(path)):
        yield tfrecords.checked(read, start, size)


@contextlib.contextmanager
def _os_errors():
  """Turns TensorFlow's own errors, such as that of a full disk, into OSError."""
  try:
    yield
  except sys.modules['tensorflow'].errors.OpError as error:
    reason = errors.first_line(error).rpartition('}} ')[2]  # After the name of an operation.
    raise OSError(f'TensorBoard events: {reason}') from error
