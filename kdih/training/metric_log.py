"""Where metrics go: a JSON line each, and TensorBoard."""
import contextlib
import json
import logging
import sys

from etils import epath

from kdih import errors
from kdih.runtime import processes
from kdih.runtime.files import is_remote

logger = logging.getLogger(__name__)


class MetricWriter:
  """Appends to `metrics.jsonl` and writes TensorBoard events next to it; the first process does.

  Args:
    directory: the phase's.
    start_step: lines of later steps are dropped: the resumed run writes them anew.
    events: whether TensorBoard events are written.
  """

  def __init__(self, directory: epath.PathLike, start_step: int, events: bool = True):
    self._path = epath.Path(directory) / 'metrics.jsonl'
    self._first, self._events = processes.is_first(), None
    self._lines: list[str] = []
    if self._first:
      self._lines = _up_to(self._path, start_step)
      self._path.write_text(''.join(self._lines))
      self._events = _summary_writer(directory) if events else None

  def write(self, step: int, scalars: dict[str, float]) -> None:
    """Writes scalars of the state after `step` updates; names may hold a '/'."""
    if not self._first:
      return
    self._lines.append(json.dumps({'step': step, **scalars}) + '\n')
    if not is_remote(self._path):
      with self._path.open('a') as file:
        file.write(self._lines[-1])
    if self._events:
      with _os_errors():
        self._events.write_scalars(step, scalars)

  def flush(self) -> None:
    """Makes sure that all is written; to objects in a store nothing can be appended before."""
    if self._first and is_remote(self._path):
      self._path.write_text(''.join(self._lines))

  def close(self) -> None:
    """Flushes, and closes the events."""
    self.flush()
    if self._events:
      with _os_errors():
        self._events.close()


def read_metrics(path: epath.PathLike) -> list[dict]:
  """The lines of a `metrics.jsonl`; one that a kill cut short is left out."""
  path = epath.Path(path)
  lines = path.read_text().split('\n')[:-1] if path.exists() else []
  return [json.loads(line) for line in lines]


def _up_to(path: epath.Path, step: int) -> list[str]:
  return [json.dumps(line) + '\n' for line in read_metrics(path) if line['step'] <= step]


def _summary_writer(directory: epath.PathLike):
  try:
    from clu import metric_writers  # Imports TensorFlow, which takes seconds.
  except ImportError as error:
    logger.warning(f'no TensorBoard events: {error}')
    return None
  with _os_errors():
    return metric_writers.SummaryWriter(str(directory))


@contextlib.contextmanager
def _os_errors():
  """TensorFlow has errors of its own for a disk that is full, or gone."""
  try:
    yield
  except sys.modules['tensorflow'].errors.OpError as error:
    reason = errors.first_line(error).rpartition('}} ')[2]  # Behind the name of an operation.
    raise OSError(f'TensorBoard events: {reason}') from error
