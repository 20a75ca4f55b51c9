"""Every orbax call of the project: checkpoints to resume from, and exported variables.

`loop` and `loop_schedule` decide when checkpoints are written.
"""
import logging
import os
import re
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from kdih import errors
from kdih.runtime import devices, digests, processes
from kdih.runtime.files import is_remote
from kdih.training.state import TrainState, from_stored, to_stored

logger = logging.getLogger(__name__)

_INCOMPLETE = 'it is incomplete'
# How messages of tensorstore and jax begin if the arrays or the list of their names are missing.
_MISSING = ('NOT_FOUND', 'pytree structure error')
SELECTION = 'top1'  # The validation metric that chooses the best checkpoint.


class Checkpoints:
  """The checkpoints of a phase: the last two, and the one with the best validation accuracy.

  Of two equally good checkpoints the later one counts. A checkpoint is complete or absent, whenever
  the process dies. It contains digests of its content, because orbax does not notice a flipped bit
  in an array. Damaged checkpoints are moved to the folder `damaged` beside `directory`.

  Args:
    directory: of the checkpoints.
    like: a state of the same structure and shapes.

  Raises:
    TrainingError: all checkpoints are damaged, or have other arrays than `like`; nothing has been
      changed.
  """

  def __init__(self, directory: epath.PathLike, like: TrainState):
    self._directory = _absolute(directory)
    self._like = to_stored(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like))
    self._set_damaged_aside()
    self._manager = _manager(self._directory)

  def save(self, state: TrainState, meta: dict, metrics: dict[str, float] | None) -> None:
    """Writes a checkpoint.

    Args:
      state: to restore.
      meta: JSON-able, to restore with the state.
      metrics: of the validation, which decide whether this checkpoint is the best one; or None.

    Raises:
      TrainingError: the checkpoint cannot be written; the earlier checkpoints are unchanged.
    """
    step = int(state.step)
    stored_state = to_stored(devices.to_host(state))
    content = {'meta': meta, 'metrics': metrics}
    stored = {**content, 'digests': [digests.of(stored_state), digests.of_json(content)]}
    try:
      self._require_there()
      self._manager.save(step, metrics=metrics, args=ocp.args.Composite(
          state=ocp.args.StandardSave(stored_state), meta=ocp.args.JsonSave(stored)))
    except (OSError, ValueError) as error:  # tensorstore raises ValueError.
      raise errors.TrainingError(
          f'the checkpoint of step {step} cannot be written to {self._directory} '
          f'({_os_error(error)}); {self.last_good()}. Fix this and run the same command again to '
          'resume') from error
    logger.debug(f'{self._directory}: wrote the checkpoint of step {step}')

  def _require_there(self) -> None:
    """Raises FileNotFoundError if a checkpoint is gone: orbax would make a deleted folder again."""
    if is_remote(self._directory):
      return
    for path in (self._directory, *(self._directory / str(s) for s in self._manager.all_steps())):
      if not path.exists():
        raise FileNotFoundError(f'{path} is gone')

  @property
  def last_step(self) -> int | None:
    """Returns the step of the last checkpoint, or None if there is no checkpoint."""
    return self._manager.latest_step()

  @property
  def last_two(self) -> list[int]:
    """Returns the steps of the last two checkpoints; 0 is the state before the first one."""
    return sorted({0, *self._manager.all_steps()})[-2:]

  def last_good(self) -> str:
    """Returns a phrase that names the checkpoint from which the phase can resume."""
    return 'there is no checkpoint yet' if self.last_step is None else (
        f'the last good checkpoint is the one of step {self.last_step}')

  def restore_last(self) -> tuple[TrainState, dict] | None:
    """Returns the last checkpoint as (state in numpy, meta), or None if there is none."""
    step = self._manager.latest_step()
    return None if step is None else self._read(step)

  def drop(self, step: int) -> None:
    """Removes the checkpoint of a step, if it exists."""
    if step in self._manager.all_steps():
      self._manager.delete(step)

  def restore_best(self) -> tuple[TrainState, dict]:
    """Returns the best checkpoint by validation, or the last one if there was no validation."""
    step = self._manager.best_step()
    return self._read(self._manager.latest_step() if step is None else step)

  def _read(self, step: int) -> tuple[TrainState, dict]:
    """Returns a checkpoint. Raises any error of orbax, and ValueError if a digest differs."""
    path = self._directory / str(step)
    with _checkpointer() as checkpointer:
      found = checkpointer.restore(path, args=ocp.args.Composite(
          state=ocp.args.StandardRestore(self._like), meta=ocp.args.JsonRestore()))
      content = {name: found['meta'][name] for name in ('meta', 'metrics')}
      if [digests.of(found['state']), digests.of_json(content)] != found['meta']['digests']:
        raise ValueError('it does not hold what was written')
      if content['metrics'] is not None:
        metrics = checkpointer.restore(path, args=ocp.args.Composite(
            metrics=ocp.args.JsonRestore()))['metrics']
        if metrics != content['metrics']:
          raise ValueError('its metrics are not the ones that were written')
    return from_stored(found['state']), content['meta']

  def _set_damaged_aside(self) -> None:
    steps = sorted(ocp.utils.checkpoint_steps(self._directory))
    damaged = {step: reason for step in steps if (reason := self._damage(step))}
    if damaged and len(damaged) == len(steps):
      self._require_same_arrays(steps[-1])
      raise errors.TrainingError(
          f'{self._directory}: every checkpoint is damaged ({damaged[steps[-1]]}); nothing was '
          'changed. Restore one from a copy, or remove the folder to train the phase again')
    aside = self._directory.with_name('damaged')
    for step, reason in damaged.items():
      logger.warning(
          f'{self._directory}: the checkpoint of step {step} is damaged ({reason}) and is moved to '
          f'{aside}; the last good one is of step {max(set(steps) - damaged.keys())}')
      if processes.is_first():
        aside.mkdir(exist_ok=True)
        (self._directory / str(step)).rename(_unused(aside / str(step)))
    devices.wait_for_all('damaged checkpoints set aside')

  def _require_same_arrays(self, step: int) -> None:
    """Raises TrainingError if a checkpoint, damaged or not, has arrays of other names."""
    try:
      with _checkpointer() as checkpointer:
        stored = _names(checkpointer.metadata(self._directory / str(step)).item_metadata['state'])
    except Exception:  # Its list of arrays is damaged, too; orbax raises many kinds.
      return
    known = _names(self._like)
    found = [f'{text} {", ".join(sorted(names))}' for text, names in (
        ('hold', stored - known), ('lack', known - stored)) if names]
    if found:
      raise errors.TrainingError(
          f'{self._directory}: another version of kdih wrote the checkpoints, which '
          f'{" and ".join(found)}; nothing was changed. Resume with that version, or remove the '
          'folder to train the phase again')

  def _damage(self, step: int) -> str:
    """Returns why a checkpoint is damaged, or '' if it is not."""
    try:
      self._read(step)
    except (KeyError, FileNotFoundError):  # An item or a file of an item is missing.
      return _INCOMPLETE
    except Exception as error:  # orbax and tensorstore raise many kinds.
      reason = errors.first_line(error)
      return _INCOMPLETE if reason.startswith(_MISSING) else reason
    return ''


def _manager(directory: epath.Path) -> ocp.CheckpointManager:
  def selection(metrics):
    return metrics[SELECTION]

  policy = checkpoint_managers.AnyPreservationPolicy([
      checkpoint_managers.LatestN(2),
      checkpoint_managers.BestN(
          get_metric_fn=selection, n=1, keep_checkpoints_without_metrics=False)])
  return ocp.CheckpointManager(directory, options=ocp.CheckpointManagerOptions(
      preservation_policy=policy, best_fn=selection, enable_async_checkpointing=False))


def _names(state: Any) -> set[str]:
  """Returns the paths of the arrays, which are their names in orbax, too."""
  return {jax.tree_util.keystr(path, simple=True, separator='/')
          for path, _ in jax.tree_util.tree_leaves_with_path(state)}


def _os_error(error: Exception) -> str:
  """Returns the message of the operating system; tensorstore's messages are long."""
  code = re.search(r"os_error_code='(\d+)'|\[Errno (\d+)\]", str(error))
  return os.strerror(int(code[1] or code[2])) if code else errors.first_line(error)


def _unused(path: epath.Path) -> epath.Path:
  """Returns the path, with a number appended if it exists."""
  number = 1
  while path.exists():
    number += 1
    path = path.with_name(f'{path.name.partition("-")[0]}-{number}')
  return path


def export(path: epath.PathLike, variables: Any, meta: dict) -> None:
  """Writes variables and their JSON-able description; replaces the folder `path`."""
  with _checkpointer() as checkpointer:
    checkpointer.save(_absolute(path), force=True, args=ocp.args.Composite(
        variables=ocp.args.StandardSave(devices.to_host(variables)),
        meta=ocp.args.JsonSave(meta)))


def read_meta(path: epath.PathLike, setting: str) -> dict:
  """Returns the description of exported variables.

  Args:
    path: a `variables` folder that `export` wrote.
    setting: the config field that names it, for the error.

  Raises:
    ConfigError: there are no exported variables at `path`.
  """
  if not (epath.Path(path) / 'meta').exists():
    raise errors.ConfigError(
        f'{setting}: no exported variables at {str(path)!r}; give the `variables` folder of a '
        'finished phase, such as runs/x/teacher/variables')
  with _checkpointer() as checkpointer:
    return checkpointer.restore(_absolute(path), args=ocp.args.Composite(
        meta=ocp.args.JsonRestore()))['meta']


def restore(path: epath.PathLike) -> Any:
  """Returns exported variables of any structure, as numpy arrays."""
  with _checkpointer() as checkpointer:
    variables = checkpointer.restore(_absolute(path), args=ocp.args.Composite(
        variables=ocp.args.StandardRestore()))['variables']
  return jax.tree.map(np.asarray, variables)


def _absolute(path: epath.PathLike) -> epath.Path:
  """Returns an absolute path, as orbax requires; gs://bucket/run is absolute."""
  return epath.Path(path) if is_remote(path) else epath.Path(path).absolute()


def _checkpointer() -> ocp.Checkpointer:
  return ocp.Checkpointer(ocp.CompositeCheckpointHandler(
      state=ocp.StandardCheckpointHandler(), variables=ocp.StandardCheckpointHandler(),
      meta=ocp.JsonCheckpointHandler(),
      metrics=ocp.JsonCheckpointHandler(filename='metrics')))  # As the manager names it.
