"""A whole run: checks everything, then runs the phases in order.

The method of DIH (arXiv 2103.00497, section 3) has three steps: train a teacher (`teacher`), train
classifier heads on its intermediate layers while it is frozen (`heads`), and train students by the
whole cohort (`student`). A phase is run once: if its result exists in the workdir, it is skipped.
"""
import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Any

import ml_collections
import tensorflow_datasets as tfds
from etils import epath

from kdih import errors
from kdih.config import checks
from kdih.data import datasets, duplicates, identity as data_identity, sizes, source
from kdih.models import registry
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
from kdih.runtime import devices, environment, files, places
from kdih.runtime.workdir import Workdir, resolved

logger = logging.getLogger(__name__)


def prepare_run(config: ml_collections.ConfigDict, path: epath.PathLike) -> Experiment:
  """Checks everything and returns a run that can be started or resumed; writes nothing.

  Args:
    config: the config, from a config file.
    path: the workdir. If it holds a run that was interrupted, that run will be resumed.

  Raises:
    ConfigError: a setting is wrong.
    DataError: the data set cannot be read.
  """
  workdir, builder, built, accepted = _checked(config, path)
  splits = source.open_splits(builder, config.data)
  left = _left(config, built, workdir)
  if left:  # Before images are read: those of an absurd size would take minutes.
    cache_plan.check(config, built, workdir.path, splits.size('train'))
    memory.check(config, built, splits, left)
  now = identity.collect(built, workdir, data_identity.identify(builder, config.data, splits))
  accepted += resume.check(workdir, now, resolved(config))
  if left:
    splits.check(config.data.validation_fraction)
    duplicates.warn_if_shared(builder, config.data)
  return Experiment(config, built, workdir, splits,
                    identity=dataclasses.replace(now, accepted=tuple(accepted)))


def estimate(config: ml_collections.ConfigDict, path: epath.PathLike) -> str:
  """Returns a text that estimates the time and memory of a run; see `dry_run`.

  Nothing is downloaded, trained or written, and the data set need not be prepared.

  Args:
    config: the config, from a config file.
    path: the workdir; phases that are finished there are left out.

  Raises:
    ConfigError: a setting is wrong.
  """
  workdir, builder, built, _ = _checked(config, path)
  images = sizes.known(builder, config.data)
  left = _left(config, built, workdir)
  if left:
    cache_plan.check(
        config, built, workdir.path, images.get('train', 0) + images.get('validation', 0))
  planned = [dry_run.PlannedPhase(config=config, built=built, phases=(phase,)) for phase in left]
  return dry_run.describe(planned, images, config.dry_run_seconds)


def _checked(
    config: ml_collections.ConfigDict, path: epath.PathLike
) -> tuple[Workdir, tfds.core.DatasetBuilder, Networks, list[str]]:
  """Makes all checks that need no images.

  Returns:
    The workdir, the data set, the networks, and the differences to the earlier run in the workdir
    that `config.accept` accepts.
  """
  checks.check(config)
  for role in ('teacher', 'student'):  # A typing error is reported before changes of the config.
    registry.find(config[role].name, f'config.{role}.name')
  places.check_workdir(path)
  workdir = Workdir(path)
  accepted = resume.check_config(workdir, resolved(config), report=True)
  check_devices(config)
  builder = datasets.open_builder(config.data, stage=not config.dry_run)
  built = networks.build(config, datasets.describe(builder, config.data))
  _check_phases(config, built, workdir)
  check_existing(config, built, workdir)
  for phase in _phases(config, built):
    if result := workdir.result(phase):
      exported_variables.check_exported(workdir.path / phase, result)
    else:
      workdir.check_phase(phase)
  return workdir, builder, built, accepted


def run(experiment: Experiment) -> None:
  """Runs the phases of `config.phases` in order, and skips the finished ones.

  The caller must hold the lock of the workdir.

  Raises:
    ConfigError: another command has begun or changed the run since `prepare_run`.
    TrainingError: the loss is not finite, memory ran out, or a checkpoint cannot be written.
    PreemptedError: the process received SIGTERM; the same command resumes the run.
  """
  config = experiment.config
  check_copied(config, experiment.workdir)
  experiment.open()
  environment.prepare(config.compute.compilation_cache, config.compute.keep_freed_memory)
  for phase in _phases(config, experiment.networks):
    if experiment.workdir.result(phase):
      logger.info(f'{phase}: finished by an earlier command')
    with memory.reported_in_one_line(phase):
      runner(phase)(experiment)
    devices.forget_programs()
    if phase in ('teacher', 'heads'):
      experiment.open()  # The teachers of the students are a part of the identity of the run.


def runner(phase: str) -> Callable[[Experiment], Any]:
  """Returns the function that runs the phase 'teacher', 'heads' or 'student/NAME'."""
  if phase == 'teacher':
    return run_teacher
  if phase == 'heads':
    return run_heads
  return functools.partial(run_student, name=phase.removeprefix('student/'))


def _phases(config: ml_collections.ConfigDict, built: Networks) -> list[str]:
  """Returns the names of all phases of the run, in order."""
  students = [f'student/{name}' for name in built.methods]
  return [name for phase in config.phases
          for name in (students if phase == 'student' else [phase])]


def _left(config: ml_collections.ConfigDict, built: Networks, workdir: Workdir) -> list[str]:
  """Returns the names of the phases that are not finished."""
  return [phase for phase in _phases(config, built) if not workdir.result(phase)]


def check_devices(config: ml_collections.ConfigDict) -> None:
  """Raises ConfigError unless every batch divides evenly over the devices and into parts."""
  num_devices, parts = devices.num_devices(), config.compute.accumulate
  for name, train in checks.trainings(config):
    batch_size = train.global_batch_size
    if batch_size % num_devices:
      raise errors.ConfigError(
          f'config.{name}.global_batch_size: {batch_size} images cannot be divided equally over '
          f'{num_devices} devices; choose a multiple of {num_devices}')
    if batch_size // num_devices % parts:
      raise errors.ConfigError(
          f'config.compute.accumulate: is {parts}, but the {batch_size // num_devices} images of a '
          f'device (config.{name}.global_batch_size over {num_devices} devices) cannot be divided '
          f'into {parts} equal parts; choose a divisor of {batch_size // num_devices}')


def _check_phases(config: ml_collections.ConfigDict, built: Networks, workdir: Workdir) -> None:
  """Raises ConfigError if a phase needs an earlier one that is neither finished nor named before.
  """
  ready = {phase for phase in ('teacher', 'heads') if workdir.result(phase)}
  taught_by = {method.taught_by for method in built.methods.values()}
  needs = {'teacher': set(), 'heads': {'teacher'},
           'student': ({'teacher'} if taught_by - {'labels'} else set())
           | ({'heads'} if 'cohort' in taught_by else set())}
  for phase in config.phases:
    for needed in sorted(needs[phase] - ready):
      raise errors.ConfigError(
          f'config.phases: {phase!r} needs the phase {needed!r}, which has not been run in this '
          f'workdir; name {needed!r} before {phase!r}')
    ready.add(phase)


def check_existing(
    config: ml_collections.ConfigDict, built: Networks, teachers: Workdir
) -> None:
  """Checks the existing variables that `config.teacher` and `config.heads` name, if any.

  The workdir keeps a copy of the variables. After a phase is finished, the original files may
  therefore be missing, but they must not have changed.

  Args:
    config: the config of the run.
    built: the networks of the run.
    teachers: the workdir of teacher and heads.

  Raises:
    ConfigError: the variables do not fit, or are not those that the finished phase copied.
  """
  if _is_needed(config, 'teacher', teachers):
    path = config.teacher.variables
    _, meta = exported_variables.load_teacher(path, config, built)
    fingerprint = exported_variables.fingerprint(meta)
    _check_taken('teacher', path, fingerprint, teachers)
    owner: str | None = fingerprint
  else:
    owner = (teachers.result('teacher') or {}).get('fingerprint')  # None: still to be trained.
  if _is_needed(config, 'heads', teachers):
    path = config.heads.variables
    _, meta = exported_variables.load_heads(path, built, owner)
    _check_taken('heads', path, exported_variables.fingerprint(meta), teachers)


def check_copied(config: ml_collections.ConfigDict, workdir: Workdir) -> None:
  """Raises ConfigError if a finished phase copied other variables than the config names."""
  for phase in ('teacher', 'heads'):
    path = config[phase].variables
    if workdir.result(phase) and _is_needed(config, phase, workdir):
      meta = exported_variables.describe(path, f'config.{phase}.variables')
      _check_taken(phase, path, exported_variables.fingerprint(meta), workdir)


def _is_needed(config: ml_collections.ConfigDict, phase: str, teachers: Workdir) -> bool:
  """Returns whether the config names variables for a phase that have to be checked."""
  path = config[phase].variables
  return bool(path) and not (teachers.result(phase) and not files.exists(
      files.given(f'config.{phase}.variables', path)))


def _check_taken(phase: str, path: str, fingerprint: str, teachers: Workdir) -> None:
  finished = teachers.result(phase)
  if finished and finished.get('fingerprint') != fingerprint:
    raise errors.ConfigError(
        f'config.{phase}.variables: {path!r} has changed since it was copied to '
        f'{teachers.path / phase}; set it to the original variables, or choose another --workdir')
