"""A whole run: everything is checked, then the phases follow each other."""
from typing import Any

import ml_collections
import tensorflow_datasets as tfds
from etils import epath

from kdih import (
  cache,
  data,
  errors,
  exported,
  fingerprint,
  modules,
  parallel,
  phases,
  run_report,
  runtime,
  students,
  validation,
)
from kdih.data import builders, source as source_lib
from kdih.experiment import Experiment
from kdih.modules import Modules
from kdih.workdir import Workdir


def run(config: ml_collections.ConfigDict, path: epath.PathLike) -> dict[str, Any]:
  """Runs the phases that `config` names and returns their results, as in `results.json`.

  Args:
    config: from a config file.
    path: the workdir; a run that was cut off goes on.

  Raises:
    ConfigError: a setting is wrong; nothing has been written to the workdir.
    TrainingError: the loss is not finite.
  """
  validation.check(config)
  workdir = Workdir(path)
  workdir.check(config)
  check_devices(config)
  builder = builders.open_builder(config.data)
  built = modules.build(config, builders.describe(builder, config.data))
  _check_phases(config, built, workdir)
  check_existing(config, built)
  splits = open_splits(config, builder)
  if _left(config, built, workdir):
    cache.check(config, built, workdir.path, splits.size('train'))
    splits.check()
  experiment = Experiment(config, built, workdir, splits)
  with workdir.locked():
    workdir.open(config)
    runtime.prepare(config.compute.compilation_cache, config.compute.keep_freed_memory)
    for phase in config.phases:
      _run_phase(phase, experiment)
    return run_report.write(workdir, built, config)


def _left(config: ml_collections.ConfigDict, built: Modules, workdir: Workdir) -> bool:
  """Whether there is a phase that has not ended yet."""
  students = [f'student/{name}' for name in built.methods]
  folders = [folder for phase in config.phases
             for folder in (students if phase == 'student' else [phase])]
  return not all(workdir.result(folder) for folder in folders)


def open_splits(
    config: ml_collections.ConfigDict, builder: tfds.core.DatasetBuilder
) -> data.Splits:
  """The splits of the data set, which is prepared first where it is not."""
  builder = builders.prepare(builder)
  sources = {split: source_lib.open_split(builder, f'{split}_split', config.data)
             for split in ('train', 'test')}
  _check_validation(config, len(sources['train']))
  return data.Splits(sources, config.data.loader)


def check_devices(config: ml_collections.ConfigDict) -> None:
  """Raises ConfigError unless every batch can be split over the devices, and cut into parts."""
  devices, parts = parallel.num_devices(), config.compute.accumulate
  for name, train in validation.trainings(config):
    batch_size = train.global_batch_size
    if batch_size % devices:
      raise errors.ConfigError(
          f'config.{name}.global_batch_size: {batch_size} cannot be split over {devices} '
          f'devices; choose a multiple of {devices}')
    if batch_size // devices % parts:
      raise errors.ConfigError(
          f'config.compute.accumulate: a share of {batch_size // devices} images '
          f'(config.{name}.global_batch_size over {devices} devices) cannot be cut into {parts} '
          'equal parts; choose a divisor of it')


def _check_validation(config: ml_collections.ConfigDict, num_examples: int) -> None:
  fraction = config.data.validation_fraction
  sizes = [len(part) for part in data.split_validation(num_examples, fraction, 0)]
  if not sizes[0] or (fraction and not sizes[1]):
    raise errors.ConfigError(
        f'config.data.validation_fraction: {fraction} of {num_examples} images leaves {sizes[0]} '
        f'to train with and {sizes[1]} to validate with, so that one has no image; choose another')


def _check_phases(config: ml_collections.ConfigDict, built: Modules, workdir: Workdir) -> None:
  """Every phase must find what it stands on: an earlier phase, or variables that exist."""
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


def check_existing(config: ml_collections.ConfigDict, built: Modules) -> None:
  """Raises ConfigError unless the variables that the config names, if any, fit."""
  if config.teacher.variables:
    teacher, _ = exported.load_teacher(config.teacher.variables, config, built)
    if config.heads.variables:
      exported.load_heads(config.heads.variables, built, fingerprint.of(teacher))


def _run_phase(phase: str, experiment: Experiment) -> None:
  if phase == 'teacher':
    phases.run_teacher(experiment)
  elif phase == 'heads':
    phases.run_heads(experiment)
  else:
    for name in experiment.modules.methods:
      students.run_student(experiment, name)
