"""Where metrics go: a JSON line each, and TensorBoard."""
import json

from etils import epath

from kdih.progress import say


class MetricWriter:
  """Appends to `metrics.jsonl` and writes TensorBoard events next to it.

  Args:
    directory: the phase's.
    start_step: lines of later steps are dropped: the resumed run writes them anew.
  """

  def __init__(self, directory: epath.PathLike, start_step: int):
    self._path = epath.Path(directory) / 'metrics.jsonl'
    _drop_later(self._path, start_step)
    self._file = self._path.open('a')
    self._events = _summary_writer(directory)

  def write(self, step: int, scalars: dict[str, float]) -> None:
    """Writes scalars of the state after `step` updates; names may hold a '/'."""
    self._file.write(json.dumps({'step': step, **scalars}) + '\n')
    self._file.flush()
    if self._events:
      self._events.write_scalars(step, scalars)

  def close(self) -> None:
    """Flushes and closes both."""
    self._file.close()
    if self._events:
      self._events.close()


def read_metrics(path: epath.PathLike) -> list[dict]:
  """The lines of a `metrics.jsonl`; one that a kill cut short is left out."""
  path = epath.Path(path)
  lines = path.read_text().split('\n')[:-1] if path.exists() else []
  return [json.loads(line) for line in lines]


def _drop_later(path: epath.Path, step: int) -> None:
  kept = [line for line in read_metrics(path) if line['step'] <= step]
  path.write_text(''.join(json.dumps(line) + '\n' for line in kept))


def _summary_writer(directory: epath.PathLike):
  try:
    from clu import metric_writers  # Imports TensorFlow, which takes seconds.
  except ImportError as error:
    say(f'no TensorBoard events: {error}')
    return None
  return metric_writers.SummaryWriter(str(directory))
