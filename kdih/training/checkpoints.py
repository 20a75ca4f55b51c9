"""Checkpoints to resume from, and the best variables so far.

`loop` and `loop_schedule` decide when checkpoints are written.
"""
import dataclasses
import errno
import logging
import os
from typing import Any

import jax
import msgspec
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from kdih import errors
from kdih.runtime import devices, digests, files, processes, run_files
from kdih.runtime.files import is_remote
from kdih.training import orbax_files
from kdih.training.state import TrainState, from_stored, to_stored

logger = logging.getLogger(__name__)

_BEST, _DELETED = 'best', 'deleted'  # Folders beside the checkpoints.
_KEPT = 2  # Scheduled checkpoints: the last one, and the one before it to rewind to.
SELECTION = 'top1'  # The validation metric that chooses the best variables.


@dataclasses.dataclass(frozen=True)
class Best:
  """The best variables of a phase, and what is known of better ones that were lost.

  Attributes:
    variables: of the step with the best validation accuracy, in numpy.
    lost: {'step', 'top1'} of better variables whose files are damaged; None if there are none.
  """

  variables: Any
  lost: dict[str, Any] | None = None


class Checkpoints:
  """The last two checkpoints of a phase, and its best variables by validation accuracy.

  A run that is asked to stop writes one more, where it is. Training resumes from it, but never
  rewinds to it, and the next scheduled checkpoint takes its place: the run ends like one that was
  not disturbed. The folder holds

      STEP/        a checkpoint: the state, and its description with digests of both
      best/STEP/   the best variables before one of the checkpoints, which names their digest
      rewind.json  the last rewind, see `rewind`
      deleted/     checkpoints that are being removed

  Of two equally good steps the later one counts. A checkpoint is complete or absent, whenever the
  process dies. It contains digests of its content, because orbax does not notice a flipped bit
  in an array. Damaged checkpoints are moved to the folder `damaged` beside `directory`.

  Args:
    directory: of the checkpoints.
    like: a state of the same structure and shapes.

  Raises:
    FileError: `rewind.json` is damaged.
    OSError: a checkpoint cannot be read now, such as with too many open files; nothing has been
      changed.
    TrainingError: all checkpoints are damaged, or have other arrays than `like`; nothing has been
      changed.
  """

  def __init__(self, directory: epath.PathLike, like: TrainState):
    self._directory = files.absolute(directory)
    self._zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    self._rewind = run_files.read(self._directory / 'rewind.json', run_files.Rewind)
    # Of every checkpoint, the fields of `run_files.CheckpointMeta`.
    self._contents: dict[int, dict[str, Any]] = {}
    self._set_damaged_aside()
    self._manager = ocp.CheckpointManager(self._directory, options=ocp.CheckpointManagerOptions(
        enable_async_checkpointing=False,
        todelete_subdir=_DELETED))  # A checkpoint is moved at once, and removed file by file.
    if set(self._manager.all_steps()) != set(self._contents):  # Orbax takes an error for no file.
      raise OSError(errno.EIO, os.strerror(errno.EIO), str(self._directory))
    self._keep_best()
    self._give_up()

  def save(self, state: TrainState, meta: dict, metrics: dict[str, float] | None,
           scheduled: bool = True) -> None:
    """Writes a checkpoint, and removes those that it replaces.

    Args:
      state: to restore.
      meta: JSON-able, to restore with the state.
      metrics: of the validation, which decide whether these variables are the best ones; or None.
      scheduled: whether an undisturbed run writes this checkpoint, too.

    Raises:
      TrainingError: the checkpoint cannot be written, and the earlier checkpoints are unchanged; or
        they cannot be removed.
    """
    step, state = int(state.step), devices.to_host(state)
    stored_state = to_stored(state)
    best, lost = (self._last.get(name) for name in ('best', 'lost'))
    last_good, what = self.last_good(), f'the checkpoint of step {step} cannot be written to'
    try:
      self._require_there()
      if metrics and _is_best(metrics, best):
        best = self._write_best(step, metrics, state.variables)
        lost = lost if lost and lost[SELECTION] > best[SELECTION] else None
      content = {
          'meta': meta, 'metrics': metrics, 'best': best, 'lost': lost, 'scheduled': scheduled}
      stored = {**content, 'digests': [digests.of(stored_state), digests.of_json(content)]}
      self._manager.save(step, args=ocp.args.Composite(
          state=ocp.args.StandardSave(stored_state), meta=ocp.args.JsonSave(stored)))
      self._require_whole(step, stored_state)
      self._contents[step] = content
      last_good, what = self.last_good(), 'earlier checkpoints cannot be removed from'
      self._remove_unused()
    except Exception as error:  # tensorstore raises ValueError, object stores many kinds.
      if not isinstance(error, OSError | ValueError) and files.system_error(error) is None:
        raise
      raise errors.TrainingError(
          f'{what} {self._directory} ({orbax_files.reason(error)}); {last_good}. Fix this and run '
          'the same command again to resume') from error
    logger.debug(f'{self._directory}: wrote the checkpoint of step {step}')

  def _require_there(self) -> None:
    """Raises FileNotFoundError if a checkpoint is gone: orbax would make a deleted folder again."""
    if is_remote(self._directory):
      return
    for path in (self._directory, *(self._directory / str(s) for s in self._manager.all_steps())):
      if not files.exists(path):
        raise FileNotFoundError(f'{path} is gone')

  def _require_whole(self, step: int, stored_state: Any) -> None:
    """Removes a checkpoint in which arrays are missing, and raises OSError."""
    path = self._directory / str(step)
    try:
      orbax_files.require_whole(path, 'state', stored_state)
    except OSError:
      (self._directory / _DELETED).mkdir(exist_ok=True)
      path.rename(self._directory / _DELETED / path.name)
      raise

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

  def restore_last(self, initial: TrainState) -> tuple[TrainState, dict]:
    """Returns the last checkpoint as (state in numpy, meta), or (`initial` in numpy, {}).

    The learning rate of the state is that of the last rewind, if there has been one since.
    """
    state, meta = devices.to_host(initial), {}
    if self.last_step is not None:
      state, content = self._read(self.last_step)
      meta = content['meta']
    if self._rewind:
      scale = np.float32(self._rewind['learning_rate_scale'])
      state = dataclasses.replace(
          state, learning_rate_scale=np.minimum(state.learning_rate_scale, scale))
    return state, meta

  def rewind(self, scale: float) -> None:
    """Goes back to the last scheduled checkpoint that has not led to a loss that is not finite.

    A checkpoint has done so if it was saved with a larger scale than the one that failed now:
    training has been at it before. It is removed, and the one before it is the last one. This is
    on the disk before anything is removed: a process that is killed resumes with it. One that was
    written because the run was asked to stop is removed, too.

    Args:
      scale: the factor of the learning rate that failed; `restore_last` returns half of it.
    """
    steps = self._scheduled
    if steps and self._scale(steps[-1]) > scale:
      steps.pop()
    self._rewind = {'step': steps[-1] if steps else 0, 'learning_rate_scale': scale / 2}
    run_files.write(self._directory / 'rewind.json', self._rewind)
    devices.wait_for_all('rewind recorded')
    self._give_up()

  def _give_up(self) -> None:
    """Removes the checkpoints that the last rewind has gone behind."""
    for step in self._manager.all_steps() if self._rewind else ():
      if (step > self._rewind['step']
          and self._scale(step) > self._rewind['learning_rate_scale']):
        self.drop(step)

  def _scale(self, step: int) -> float:
    return float(self._read(step)[0].learning_rate_scale)

  def drop(self, step: int) -> None:
    """Removes the checkpoint of a step, if it exists."""
    if step in self._manager.all_steps():
      self._manager.delete(step)
      self._remove_unused()

  def restore_best(self) -> Best:
    """Returns the best variables by validation, or the last ones if there was no validation."""
    last = self.last_step
    assert last is not None, 'a phase ends with a checkpoint'
    if self._last['best'] and self._damage_of_best(self._last['best']):
      self._keep_best()
    best, lost = self._last['best'], self._last.get('lost')
    if lost:
      logger.warning(f'{self._directory}: the best variables, of step {lost["step"]}, are lost; '
                     f'those of step {best["step"] if best else last} take their place')
    return Best(self._read_best(best) if best else self._read(last)[0].variables, lost)

  @property
  def _last(self) -> dict[str, Any]:
    """Returns the fields of the last checkpoint, see `run_files.CheckpointMeta`; {} without one."""
    return {} if self.last_step is None else self._contents[self.last_step]

  @property
  def _scheduled(self) -> list[int]:
    """Returns the steps of the checkpoints that an undisturbed run writes, too, in their order."""
    return [step for step in sorted(self._manager.all_steps())
            if self._contents[step].get('scheduled', True)]

  def _best_path(self, step: int) -> epath.Path:
    return self._directory / _BEST / str(step)

  def _write_best(
      self, step: int, metrics: dict[str, float], variables: Any
  ) -> dict[str, Any]:
    """Writes the best variables, and returns the entry of the checkpoints that names them."""
    orbax_files.export(self._best_path(step), variables, {})
    return {'step': step, SELECTION: metrics[SELECTION], 'digest': digests.of(variables)}

  def _read_best(self, best: dict[str, Any]) -> Any:
    """Returns the best variables. Raises as `_read`."""
    variables = orbax_files.read(
        self._best_path(best['step']),
        variables=ocp.args.StandardRestore(self._zeros.variables))['variables']
    if digests.of(variables) != best['digest']:
      raise ValueError('they are not those that were written')
    return variables

  def _damage_of_best(self, best: dict[str, Any]) -> str:
    """Returns what is damaged in best variables, in a few words; '' if they are whole."""
    damage = ''
    try:
      self._read_best(best)
    except Exception as error:  # orbax and tensorstore raise many kinds.
      damage = orbax_files.damage(error)
    return devices.from_first_process(damage)  # All of them repair it, or none.

  def _keep_best(self) -> None:
    """Replaces best variables that are damaged by the next best ones of a checkpoint.

    Those of a checkpoint that is still there are written again. A checkpoint of an earlier version
    names none: in its run the best checkpoint was kept.
    """
    damages: dict[int, str] = {}  # Of the best variables of a step; '' if they are whole.
    lost: dict[int, str] = {}
    before = None
    for step, content in sorted(self._contents.items()):
      named = content.get('best')
      if named and named['step'] not in damages:
        damages[named['step']] = self._damage_of_best(named)
      if 'best' not in content or (named and damages[named['step']]):
        best = before
        if content['metrics'] and _is_best(content['metrics'], best):
          best = self._write_best(step, content['metrics'], self._read(step)[0].variables)
          damages[step] = ''
        content['best'] = best
        if named and best != named:  # Their checkpoint is gone.
          lost[named['step']] = damages[named['step']]
          content['lost'] = content.get('lost') or {
              name: named[name] for name in ('step', SELECTION)}
      before = content['best']
    for step, damage in lost.items():
      logger.warning(
          f'{self._directory}: the best variables, of step {step}, are damaged ({damage}); the '
          'next best ones take their place, unless training finds better ones')
    self._remove_unused()

  def _remove_unused(self) -> None:
    """Leaves the last scheduled checkpoints, the last one, and the best variables of these."""
    steps = sorted(self._manager.all_steps())
    kept = {*self._scheduled[-_KEPT:], *steps[-1:]}
    for step in steps:
      if step not in kept:
        self._manager.delete(step)
    self._contents = {step: self._contents[step] for step in kept}
    used = {str(content['best']['step']) for content in self._contents.values()
            if content.get('best')}
    if processes.is_first():
      (self._directory / _DELETED).rmtree(missing_ok=True)
      folder = self._directory / _BEST
      for path in folder.iterdir() if files.exists(folder) else ():
        if path.name not in used:
          path.rmtree()
    devices.wait_for_all('unused files removed')

  def _read(self, step: int) -> tuple[TrainState, dict]:
    """Returns the state of a checkpoint and its description.

    Raises as `orbax_files.read`, and an error if the description or a digest is wrong.
    """
    found = orbax_files.read(
        self._directory / str(step), meta=ocp.args.JsonRestore(),
        state=ocp.args.StandardRestore(to_stored(self._zeros)))
    content = {name: value for name, value in found['meta'].items() if name != 'digests'}
    msgspec.convert(content, run_files.CheckpointMeta)
    if [digests.of(found['state']), digests.of_json(content)] != found['meta']['digests']:
      raise ValueError('it does not hold what was written')
    return from_stored(found['state']), content

  def _set_damaged_aside(self) -> None:
    """Reads every checkpoint, and moves the damaged ones."""
    steps, damaged = sorted(ocp.utils.checkpoint_steps(self._directory)), {}
    for step in steps:
      try:
        orbax_files.require_step(self._directory, step)
        _, self._contents[step] = self._read(step)
      except Exception as error:  # orbax and tensorstore raise many kinds.
        damaged[step] = orbax_files.damage(error)
    if damaged and len(damaged) == len(steps):
      self._require_same_arrays(steps[-1])
      raise errors.TrainingError(
          f'{self._directory}: every checkpoint is damaged ({damaged[steps[-1]]}); nothing was '
          'changed. Restore one from a copy, or remove the folder to train the phase again')
    aside = self._directory.with_name('damaged')
    for step, reason in damaged.items():
      logger.warning(
          f'{self._directory}: the checkpoint of step {step} is damaged ({reason}) and is moved to '
          f'{aside}; the last good one is of step {max(self._contents)}')
      if processes.is_first():
        aside.mkdir(exist_ok=True)
        (self._directory / str(step)).rename(_unused(aside / str(step)))
    devices.wait_for_all('damaged checkpoints set aside')

  def _require_same_arrays(self, step: int) -> None:
    """Raises TrainingError if a checkpoint, damaged or not, has arrays of other names."""
    try:
      stored = set(orbax_files.shapes(self._directory / str(step), 'state'))
    except Exception:  # Its list of arrays is damaged, too; orbax raises many kinds.
      return
    known = set(orbax_files.named_leaves(to_stored(self._zeros)))
    found = [f'{text} {", ".join(sorted(names))}' for text, names in (
        ('hold', stored - known), ('lack', known - stored)) if names]
    if found:
      raise errors.TrainingError(
          f'{self._directory}: another version of kdih wrote the checkpoints, which '
          f'{" and ".join(found)}; nothing was changed. Resume with that version, or remove the '
          'folder to train the phase again')


def _is_best(metrics: dict[str, float], best: dict[str, Any] | None) -> bool:
  """Returns whether a validation was no worse than that of the best variables before it."""
  return best is None or metrics[SELECTION] >= best[SELECTION]


def _unused(path: epath.Path) -> epath.Path:
  """Returns the path, with a number appended if it exists."""
  number = 1
  while path.exists():
    number += 1
    path = path.with_name(f'{path.name.partition("-")[0]}-{number}')
  return path
