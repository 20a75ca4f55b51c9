"""Whether a run can resume: whether its config and its identity are the same as at its start.

If a part of its identity differs, it resumes only if `config.accept` names the part.
"""
import dataclasses
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from etils import epath

from kdih import errors
from kdih.config import protocol
from kdih.config.schema import Flat
from kdih.data import changes
from kdih.phases import computation
from kdih.phases.identity import Identity
from kdih.runtime.workdir import Workdir

logger = logging.getLogger(__name__)

# What a run was begun with, in messages, if the part of its config or identity has changed.
_OTHER = {'config': 'other settings', 'data': 'other data', 'teacher': 'another teacher',
          'computation': 'other code', 'versions': 'other versions or devices'}


def check_config(
    workdir: Workdir, config: dict[str, Any], *, student: bool = True, report: bool = False
) -> list[str]:
  """Checks that a config can resume the run in a workdir.

  Args:
    workdir: of the run; it may not exist yet.
    config: of this command, as nested dicts.
    student: whether students are trained in it, too.
    report: whether the report of the run is written to it.

  Returns:
    The differences that `config.accept` accepts.

  Raises:
    ConfigError: there are other differences; the message lists all differences. Or files that are
      not known to be of a run would be overwritten.
    FileError, UnreadableError: a file of the workdir is damaged, or cannot be read now.
  """
  workdir.check()
  # Listed before the manifest is read: another command that begins the run writes that first.
  written = workdir.written(report=report)
  found = _of_config(workdir, written, workdir.manifest(), config, student=student)
  return _accepted(workdir.path, {'config': found}, config['accept'])


def _of_config(
    workdir: Workdir, written: Sequence[epath.Path], manifest: dict[str, Any] | None,
    config: dict[str, Any], *, student: bool,
) -> list[str]:
  """Returns the differences between a config and a manifest.

  Files that are `written` without a manifest are one.
  """
  if manifest is None:
    if written and 'config' not in config['accept']:
      raise errors.ConfigError(errors.in_line(
          f'--workdir: {written[0]} could be overwritten, and is not known to be of a run, because '
          f'{workdir.path / "manifest.json"} is missing. Choose another workdir; if this was a '
          'run, restore the manifest from a copy, or accept its phases as they are with '
          '--accept=config; the results will list it'))
    return ['manifest.json is missing, which holds the settings of its phases'] if written else []
  begun = _begun(workdir.path, config) if student else ()
  return _differences(
      workdir.path / 'manifest.json', manifest['config'], config,
      lambda fields: {**protocol.fixed(fields, student=student), **protocol.methods(fields, begun)})


def check_swept(workdir: Workdir, config: dict[str, Any], known: Collection[str]) -> list[str]:
  """Checks that a run of a sweep can share its tables with those of a config.

  Args:
    workdir: of the run; it may not exist yet.
    config: as nested dicts.
    known: differences that an earlier command has accepted.

  Returns:
    The differences in fields that a sweep does not vary; all are accepted or known.

  Raises:
    ConfigError: there are other differences; the message lists all differences.
  """
  manifest, begun = workdir.manifest(), _begun(workdir.path, config)
  if manifest is None:
    return []
  found = _differences(workdir.path / 'manifest.json', manifest['config'], config,
                       lambda fields: {**protocol.swept(fields), **protocol.methods(fields, begun)})
  # The run is only read: no warning is needed for differences that are accepted.
  _require_accepted(workdir.path, {'config': _unknown(found, known)}, config['accept'])
  return found


def compare_configs(
    path: epath.Path, before: dict[str, Any], now: dict[str, Any],
    compared: Callable[[dict[str, Any]], Flat], known: Collection[str],
) -> list[str]:
  """Compares the config of an earlier command with the config of this command.

  Logs every difference.

  Args:
    path: the file with the earlier config.
    before: the earlier config.
    now: the config of this command.
    compared: selects the fields to compare.
    known: differences that an earlier command has accepted.

  Returns:
    The differences; all are accepted or known.

  Raises:
    ConfigError: there are other differences; the message lists all differences.
  """
  found = _differences(path, before, now, compared)
  _accepted(path.parent, {'config': _unknown(found, known)}, now['accept'])
  for line in found:
    if line in known:
      logger.warning(f'{path.parent}: accepted by an earlier command: config: {line}')
  return found


def _unknown(found: list[str], known: Collection[str]) -> list[str]:
  return [line for line in found if line not in known]


def _differences(
    path: epath.Path, before: dict[str, Any], now: dict[str, Any],
    compared: Callable[[dict[str, Any]], Flat],
) -> list[str]:
  try:
    fields = compared(before)
  except (AttributeError, KeyError, TypeError, ValueError) as error:  # Fields may hold anything.
    raise errors.FileError(
        path, f'its config cannot be used: {errors.first_line(error)}') from error
  return protocol.differences(fields, compared(now))


def check(workdir: Workdir, now: Identity, config: dict[str, Any]) -> list[str]:
  """Compares the identity of this command with that of the run in a workdir.

  Logs the versions that have changed.

  Args:
    workdir: of the run; it may not exist yet.
    now: the identity of this command.
    config: of this command, as nested dicts.

  Returns:
    The differences that earlier commands accepted, then those that `config.accept` accepts.

  Raises:
    ConfigError: there are other differences; the message lists all differences.
  """
  manifest = workdir.manifest()
  changed, found = _of_identity(workdir, manifest, now, config)
  for line in changed:
    logger.warning(f'{workdir.path}: {line}')
  return [*_earlier(manifest), *_accepted(workdir.path, found, config['accept'])]


def check_again(workdir: Workdir, now: Identity, config: dict[str, Any]) -> Identity:
  """Repeats `check_config` and `check` for a run that begins or has trained its teachers.

  Since those, another command may have begun the run, and the teacher may have been trained again.
  The caller must hold the lock of the manifest until it has written the manifest.

  Args:
    workdir: of the run.
    now: the identity of this command, with what it has accepted.
    config: of this command, as nested dicts.

  Returns:
    The identity, with all differences that this command and earlier ones have accepted. Those that
    are new are logged.

  Raises:
    ConfigError: there are other differences; the message lists all differences.
    FileError, UnreadableError: a file of the workdir is damaged, or cannot be read now.
  """
  workdir.check()
  written, manifest = workdir.written(report=False), workdir.manifest()
  student = 'methods' in now.computation  # Without, it is the teacher of a sweep, and its heads.
  found = {'config': _of_config(workdir, written, manifest, config, student=student),
           **_of_identity(workdir, manifest, now, config)[1]}
  accepted = _accepted(workdir.path, found, config['accept'], now.accepted)
  return dataclasses.replace(now, accepted=tuple(dict.fromkeys(
      (*now.accepted, *_earlier(manifest), *accepted))))


def _earlier(manifest: dict[str, Any] | None) -> Sequence[str]:
  """Returns the differences that earlier commands accepted."""
  return (manifest or {}).get('accepted', ())


def _of_identity(
    workdir: Workdir, manifest: dict[str, Any] | None, now: Identity, config: dict[str, Any]
) -> tuple[list[str], dict[str, list[str]]]:
  """Returns the versions to report, and the differences between an identity and a manifest."""
  before = (manifest or {}).get('identity') or {}
  stored = {part: before.get(part) or {} for part in now.parts()}
  try:
    changed, refused = _versions(stored['versions'], now.versions, config)
    return changed, {
        'data': changes.differences(stored['data'], now.data),
        'teacher': _teacher(stored['teacher'], now.teacher),
        'computation': computation.differences(stored['computation'], now.computation),
        'versions': refused}
  except (AttributeError, KeyError, TypeError, ValueError) as error:  # Fields may hold anything.
    raise errors.FileError(workdir.path / 'manifest.json',
                           f'its identity cannot be used: {errors.first_line(error)}') from error


def _teacher(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
  words = {'variables': 'its variables have', 'heads': 'the variables of its heads have',
           'weights': 'the weights of its members have', 'classes': 'its classes have',
           'mean': 'the mean of its images has', 'std': 'the std of its images has',
           'image_shape': 'the size of its images has'}
  return [f'{text} changed' for name, text in words.items()
          if name in before and name in now and before[name] != now[name]]


def _versions(
    before: Mapping[str, Any], now: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[list[str], list[str]]:
  """Returns the versions that differ: those to report, and those that change the numbers."""
  changed = {name: f'{name} was {before[name]!r} and is {value!r}' for name, value in now.items()
             if name in before and before[name] != value}
  decisive = {'x64', 'prng', *(() if config['sync_batch_norm'] else ('devices',))}
  if 'platform' in changed:  # Another platform computes other bits anyway.
    decisive = set()
  return ([line for name, line in changed.items() if name not in decisive],
          [line for name, line in changed.items() if name in decisive])


def _begun(workdir: epath.Path, config: Mapping[str, Any]) -> list[str]:
  """Returns the methods of a config whose students have begun to train.

  The config may lack methods of earlier commands, such as the variants of a sweep.
  """
  return sorted(path.name for path in workdir.glob('student/*') if path.name in config['methods'])


def _accepted(
    workdir: epath.Path, found: dict[str, list[str]], accept: Sequence[str],
    logged: Collection[str] = (),
) -> list[str]:
  """Logs and returns the accepted differences; raises ConfigError if there are others."""
  _require_accepted(workdir, found, accept)
  accepted = [f'{part}: {line}' for part, lines in found.items() for line in lines]
  for line in _unknown(accepted, logged):
    logger.warning(f'{workdir}: accepted: {line}')
  return accepted


def _require_accepted(
    workdir: epath.Path, found: dict[str, list[str]], accept: Sequence[str]
) -> None:
  """Raises ConfigError if there are differences in parts that are not accepted."""
  refused = {part: lines for part, lines in found.items() if lines and part not in accept}
  if refused:
    listed = '; '.join(f'with {_OTHER[part]}: {", ".join(lines)}'
                       for part, lines in refused.items())
    raise errors.ConfigError(
        f'--workdir: {workdir} holds a run that was begun {listed}. Undo the change, choose '
        f'another workdir, or accept the change with --accept={",".join(refused)}; the results '
        'will list it')
