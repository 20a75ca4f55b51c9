"""Whether a run can resume: whether it is still made of what it was.

Where a part of its identity differs, it resumes only if `config.accept` names the part.
"""
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


def check_config(workdir: Workdir, config: dict[str, Any], *, student: bool = True) -> list[str]:
  """Checks that a config can resume the run in a workdir.

  Args:
    workdir: of the run; perhaps there is none yet.
    config: of this command, as nested dicts.
    student: whether students are trained there too.

  Returns:
    The differences that `config.accept` accepts.

  Raises:
    ConfigError: another difference; all of them are named.
  """
  manifest = workdir.manifest()
  if manifest is None:
    return []
  begun = _begun(workdir.path, config) if student else ()
  found = _differences(
      workdir.path / 'manifest.json', manifest['config'], config,
      lambda its: {**protocol.fixed(its, student=student), **protocol.methods(its, begun)})
  return _accepted(workdir.path, {'config': found}, config['accept'])


def check_swept(workdir: Workdir, config: dict[str, Any], known: Collection[str]) -> list[str]:
  """Checks that a run of a sweep can share its tables with those of a config.

  Args:
    workdir: of the run; perhaps there is none yet.
    config: as nested dicts.
    known: differences that need not be accepted again.

  Returns:
    The differences in more than a sweep varies, all of which are accepted or known.

  Raises:
    ConfigError: another difference; all of them are named.
  """
  manifest, begun = workdir.manifest(), _begun(workdir.path, config)
  if manifest is None:
    return []
  found = _differences(workdir.path / 'manifest.json', manifest['config'], config,
                       lambda its: {**protocol.swept(its), **protocol.methods(its, begun)})
  # The run is not touched, so that what is accepted of it need not be said.
  _require_accepted(workdir.path, {'config': _unknown(found, known)}, config['accept'])
  return found


def compare_configs(
    path: epath.Path, before: dict[str, Any], now: dict[str, Any],
    compared: Callable[[dict[str, Any]], Flat], known: Collection[str],
) -> list[str]:
  """Checks what is `compared` of two configs, of which a file holds the first.

  Returns and raises as `check_swept`, and says each difference.
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
  except (AttributeError, KeyError, TypeError, ValueError) as error:  # It may hold anything.
    raise errors.FileError(path, f'its config is not one: {errors.first_line(error)}') from error
  return protocol.differences(fields, compared(now))


def check(workdir: Workdir, now: Identity, config: dict[str, Any]) -> list[str]:
  """Checks that the other parts are those of the run in a workdir, and says which versions changed.

  Args:
    workdir: of the run; perhaps there is none yet.
    now: what it would be made of.
    config: of this command, as nested dicts.

  Returns:
    The differences that `config.accept` accepts, those that were accepted before first.

  Raises:
    ConfigError: another difference; all of them are named.
  """
  manifest = workdir.manifest() or {}
  before = manifest.get('identity') or {}
  try:
    stored = {part: dict(before.get(part) or {}) for part in now.parts()}
    dict(stored['computation'].get('methods') or {})  # Raises where it is none.
    said, refused = _versions(stored['versions'], now.versions, config)
    found = {'data': changes.differences(stored['data'], now.data),
             'teacher': _teacher(stored['teacher'], now.teacher),
             'computation': computation.differences(stored['computation'], now.computation),
             'versions': refused}
    accepted = [str(line) for line in manifest.get('accepted', ())]
  except (AttributeError, KeyError, TypeError, ValueError) as error:  # It may hold anything.
    raise errors.FileError(workdir.path / 'manifest.json',
                           f'its identity is not one: {errors.first_line(error)}') from error
  for line in said:
    logger.warning(f'{workdir.path}: {line}')
  return [*accepted, *_accepted(workdir.path, found, config['accept'])]


def check_teacher(workdir: Workdir, teacher: dict[str, Any], accept: Sequence[str]) -> list[str]:
  """Checks the teacher alone, as `check` does: it was done after that, perhaps anew."""
  before = ((workdir.manifest() or {}).get('identity') or {}).get('teacher') or {}
  return _accepted(workdir.path, {'teacher': _teacher(before, teacher)}, accept)


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
  """Returns what is another version, and what of it changes numbers on the same platform."""
  changed = {name: f'{name} was {before[name]!r} and is {value!r}' for name, value in now.items()
             if name in before and before[name] != value}
  telling = {'x64', 'prng', *(() if config['sync_batch_norm'] else ('devices',))}
  if 'platform' in changed:
    telling = set()
  return ([line for name, line in changed.items() if name not in telling],
          [line for name, line in changed.items() if name in telling])


def _begun(workdir: epath.Path, config: Mapping[str, Any]) -> list[str]:
  """Returns the methods of a config by which students have begun to be taught.

  A command need not hold all that came before, such as the variants of an earlier sweep.
  """
  return sorted(path.name for path in workdir.glob('student/*') if path.name in config['methods'])


def _accepted(
    workdir: epath.Path, found: dict[str, list[str]], accept: Sequence[str]
) -> list[str]:
  """Says and returns the differences in parts that are accepted; raises ConfigError for others."""
  _require_accepted(workdir, found, accept)
  accepted = [f'{part}: {line}' for part, lines in found.items() for line in lines]
  for line in accepted:
    logger.warning(f'{workdir}: accepted: {line}')
  return accepted


def _require_accepted(
    workdir: epath.Path, found: dict[str, list[str]], accept: Sequence[str]
) -> None:
  """Raises ConfigError for differences in parts that are not accepted."""
  refused = {part: lines for part, lines in found.items() if lines and part not in accept}
  if refused:
    said = '; '.join(f'{part}: {", ".join(lines)}' for part, lines in refused.items())
    raise errors.ConfigError(
        f'--workdir: {workdir} holds a run from before something changed; {said}. Undo the '
        f'change, choose another workdir, or accept it with --accept={",".join(refused)}, which '
        'the results will say')
