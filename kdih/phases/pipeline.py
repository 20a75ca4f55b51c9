"""A whole run: everything is checked, then the phases follow each other."""
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import ml_collections
import tensorflow_datasets as tfds
from etils import epath

from kdih import errors
from kdih.config import checks
from kdih.data import datasets, duplicates, identity as data_identity, sizes, source
from kdih.phases import (
    cache_plan,
    dry_run,
    exported_variables,
    identity,
    memory,
    networks,
    resume,
)
from kdih.phases.experiment import Experiment
from kdih.phases.heads import run_heads
from kdih.phases.networks import Networks
from kdih.phases.student import run_student
from kdih.phases.teacher import run_teacher
from kdih.runtime import devices, environment
from kdih.runtime.workdir import Workdir, resolved


def prepare_run(config: ml_collections.ConfigDict, path: epath.PathLike) -> Experiment:
  """Checks everything and returns the run of `config` in the workdir `path`; writes nothing there.

  Args:
    config: from a config file.
    path: the workdir; a run that was cut off goes on.

  Raises:
    ConfigError: a setting is wrong.
    DataError: the data set cannot be read.
  """
  workdir, builder, built, accepted = _checked(config, path)
  splits = source.open_splits(builder, config.data)
  now = identity.collect(built, workdir, data_identity.identify(builder, config.data, splits))
  accepted += resume.check(workdir, now, resolved(config))
  if left := _left(config, built, workdir):
    cache_plan.check(config, built, workdir.path, splits.size('train'))
    memory.check(config, built, splits, left)
    splits.check()
    duplicates.warn_if_shared(builder, config.data)
  return Experiment(config, built, workdir, splits,
                    identity=dataclasses.replace(now, accepted=tuple(accepted)))


def estimate(config: ml_collections.ConfigDict, path: epath.PathLike) -> str:
  """Returns what the run of `config` in the workdir `path` will take, as text; see `dry_run`.

  Nothing is downloaded, trained or written, and the data set need not be there.

  Raises:
    ConfigError: a setting is wrong.
  """
  workdir, builder, built, _ = _checked(config, path)
  images = sizes.known(builder, config.data)
  left = _left(config, built, workdir)
  if left:
    cache_plan.check(
        config, built, workdir.path, images.get('train', 0) + images.get('validation', 0))
  planned = [dry_run.Planned(config, built, (phase,)) for phase in left]
  return dry_run.describe(planned, images, config.dry_run_seconds)


def _checked(
    config: ml_collections.ConfigDict, path: epath.PathLike
) -> tuple[Workdir, tfds.core.DatasetBuilder, Networks, list[str]]:
  """Checks all that can be without the images.

  Returns:
    The workdir, the data set, the networks, and the differences to earlier runs that are accepted.
  """
  checks.check(config)
  workdir = Workdir(path)
  accepted = resume.check_config(workdir, resolved(config))
  check_devices(config)
  builder = datasets.open_builder(config.data, stage=not config.dry_run)
  built = networks.build(config, datasets.describe(builder, config.data))
  _check_phases(config, built, workdir)
  check_existing(config, built, workdir)
  return workdir, builder, built, accepted


def run(experiment: Experiment) -> None:
  """Runs the phases that the config names, one after the other; one that is finished is skipped.

  The caller holds the lock of the workdir.

  Raises:
    TrainingError: the loss is not finite, or a checkpoint cannot be written.
    PreemptedError: the process was asked to stop, and has saved.
  """
  config = experiment.config
  experiment.open()
  environment.prepare(config.compute.compilation_cache, config.compute.keep_freed_memory)
  for phase in _phases(config, experiment.networks):
    with memory.told_in_a_line(phase):
      runner(phase)(experiment)
    if phase in ('teacher', 'heads'):
      experiment.open()  # Who teaches is a part of what students are made of.


def runner(phase: str) -> Callable[[Experiment], Any]:
  """Returns what runs the phase 'teacher', 'heads' or 'student/NAME', unless it is finished."""
  if phase == 'teacher':
    return run_teacher
  if phase == 'heads':
    return run_heads
  return functools.partial(run_student, name=phase.removeprefix('student/'))


def _phases(config: ml_collections.ConfigDict, built: Networks) -> list[str]:
  """Returns the names of all phases, in their order."""
  students = [f'student/{name}' for name in built.methods]
  return [name for phase in config.phases
          for name in (students if phase == 'student' else [phase])]


def _left(config: ml_collections.ConfigDict, built: Networks, workdir: Workdir) -> list[str]:
  """Returns those that have not ended yet."""
  return [phase for phase in _phases(config, built) if not workdir.result(phase)]


def check_devices(config: ml_collections.ConfigDict) -> None:
  """Raises ConfigError unless every batch can be split over the devices, and cut into parts."""
  num_devices, parts = devices.num_devices(), config.compute.accumulate
  for name, train in checks.trainings(config):
    batch_size = train.global_batch_size
    if batch_size % num_devices:
      raise errors.ConfigError(
          f'config.{name}.global_batch_size: {batch_size} cannot be split over {num_devices} '
          f'devices; choose a multiple of {num_devices}')
    if batch_size // num_devices % parts:
      raise errors.ConfigError(
          f'config.compute.accumulate: a share of {batch_size // num_devices} images '
          f'(config.{name}.global_batch_size over {num_devices} devices) cannot be cut into '
          f'{parts} equal parts; choose a divisor of it')


def _check_phases(config: ml_collections.ConfigDict, built: Networks, workdir: Workdir) -> None:
  """Raises ConfigError where a phase lacks one that it stands on, run before or named before it."""
  ready = {phase for phase in ('teacher', 'heads') if workdir.result(phase)}
  taught_by = {method.taught_by for method in built.methods.values()}
  needs = {'teacher': set(), 'heads': {'teacher'},
           'student': ({'teacher'} if taught_by - {'labels'} else set())
           | ({'heads'} if 'cohort' in taught_by else set())}
  for phase in config.phases:
    for needed in sorted(needs[phase] - ready):
      raise errors.ConfigError(
          f'config.phases: {phase!r} stands on {needed!r}, which has not been run in this workdir; '
          f'name {needed!r} before it')
    ready.add(phase)


def check_existing(
    config: ml_collections.ConfigDict, built: Networks, teachers: Workdir
) -> None:
  """Raises ConfigError unless the variables that the config names, if any, fit.

  A phase that is finished has a copy of its own, so that these may be gone by then; but they must
  not have become others.

  Args:
    config: of the run.
    built: its networks.
    teachers: the workdir of teacher and heads.
  """
  if _is_needed(config, 'teacher', teachers):
    path = config.teacher.variables
    _, meta = exported_variables.load_teacher(path, config, built)
    owner = exported_variables.fingerprint(meta)
    _check_taken('teacher', path, owner, teachers)
  else:
    owner = (teachers.result('teacher') or {}).get('fingerprint', '')
  if config.teacher.variables and _is_needed(config, 'heads', teachers):
    path = config.heads.variables
    _, meta = exported_variables.load_heads(path, built, owner)
    _check_taken('heads', path, exported_variables.fingerprint(meta), teachers)


def _is_needed(config: ml_collections.ConfigDict, phase: str, teachers: Workdir) -> bool:
  """Returns whether to look at the variables that the config names for a phase, if any."""
  path = config[phase].variables
  return bool(path) and not (teachers.result(phase) and not epath.Path(path).exists())


def _check_taken(phase: str, path: str, fingerprint: str, teachers: Workdir) -> None:
  finished = teachers.result(phase)
  if finished and finished.get('fingerprint') != fingerprint:
    raise errors.ConfigError(
        f'config.{phase}.variables: {path!r} holds others than those that {teachers.path / phase} '
        'was made of; name these, or choose another workdir')
