"""Every orbax call of the project: checkpoints to resume from, variables to keep."""
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from kdih import errors, parallel
from kdih.state import TrainState

SELECTION = 'top1'  # The validation metric that chooses the best checkpoint.


class Checkpoints:
  """The checkpoints of a phase: the last two, and the one with the best validation accuracy.

  Of equally good ones the later is the best. Each is complete or absent, whenever the process
  dies.
  """

  def __init__(self, directory: epath.PathLike):
    def selection(metrics):
      return metrics[SELECTION]

    policy = checkpoint_managers.AnyPreservationPolicy([
        checkpoint_managers.LatestN(2),
        checkpoint_managers.BestN(
            get_metric_fn=selection, n=1, keep_checkpoints_without_metrics=False)])
    self._manager = ocp.CheckpointManager(epath.Path(directory).absolute(), options=(
        ocp.CheckpointManagerOptions(
            preservation_policy=policy, best_fn=selection, enable_async_checkpointing=False)))

  def save(self, state: TrainState, meta: dict, metrics: dict[str, float] | None) -> None:
    """Writes `state` and the JSON-able `meta`; `metrics` takes part in the choice of the best."""
    state = parallel.to_host(state)
    self._manager.save(int(state.step), metrics=metrics, args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)))

  def restore_last(self, like: TrainState) -> tuple[TrainState, dict] | None:
    """The last checkpoint as (state in numpy, meta), or None where there is none."""
    step = self._manager.latest_step()
    return None if step is None else self._restore(step, like)

  def restore_best(self, like: TrainState) -> tuple[TrainState, dict]:
    """The best checkpoint by validation; the last one where nothing was validated."""
    step = self._manager.best_step()
    return self._restore(self._manager.latest_step() if step is None else step, like)

  def _restore(self, step: int, like: TrainState) -> tuple[TrainState, dict]:
    like = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    restored = self._manager.restore(step, args=ocp.args.Composite(
        state=ocp.args.StandardRestore(like), meta=ocp.args.JsonRestore()))
    return restored['state'], restored['meta']


def export(path: epath.PathLike, variables: Any, meta: dict) -> None:
  """Writes variables alone, with a JSON-able description, replacing what is at `path`."""
  with _checkpointer() as checkpointer:
    checkpointer.save(epath.Path(path).absolute(), force=True, args=ocp.args.Composite(
        variables=ocp.args.StandardSave(parallel.to_host(variables)),
        meta=ocp.args.JsonSave(meta)))


def read_meta(path: epath.PathLike, setting: str) -> dict:
  """The description of exported variables.

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
    return checkpointer.restore(epath.Path(path).absolute(), args=ocp.args.Composite(
        meta=ocp.args.JsonRestore()))['meta']


def restore(path: epath.PathLike) -> Any:
  """Exported variables, whatever they are of, as numpy arrays."""
  with _checkpointer() as checkpointer:
    variables = checkpointer.restore(epath.Path(path).absolute(), args=ocp.args.Composite(
        variables=ocp.args.StandardRestore()))['variables']
  return jax.tree.map(np.asarray, variables)


def load(path: epath.PathLike, like: Any, setting: str) -> Any:
  """Exported variables of a known model, as numpy arrays.

  Args:
    path: a `variables` folder that `export` wrote.
    like: variables of the same structure and shapes (`jax.ShapeDtypeStruct` will do).
    setting: the config field that names it, for the error.

  Raises:
    ConfigError: what is stored has another structure or other shapes.
  """
  variables = restore(path)
  if _shapes(variables) != _shapes(like):
    raise errors.ConfigError(
        f'{setting}: the variables at {str(path)!r} are not of this model; name the model and '
        'the classes that they were trained with')
  return variables


def _checkpointer() -> ocp.Checkpointer:
  return ocp.Checkpointer(ocp.CompositeCheckpointHandler())


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  return {jax.tree_util.keystr(path): tuple(leaf.shape)
          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
