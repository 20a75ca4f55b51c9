"""What a run is made of, and whether that is still the same when it resumes.

Its identity has five parts, `choices.PARTS`: the fields of the config that have to stay, the data,
the teacher, the computation and the versions. The manifest of a workdir holds it.
"""
from collections.abc import Sequence
from typing import Any

from etils import epath

from kdih import errors
from kdih.config import protocol
from kdih.runtime.workdir import Workdir


def check_config(workdir: Workdir, config: dict[str, Any], *, student: bool = True) -> list[str]:
  """Checks that a config can resume the run in a workdir.

  Args:
    workdir: of the run; perhaps there is none yet.
    config: of this command, as nested dicts.
    student: whether students are trained there too.

  Returns:
    The differences that `config.accept` accepts.

  Raises:
    ConfigError: another difference, each of which is named.
  """
  manifest = workdir.manifest()
  if manifest is None:
    return []
  begun = _begun(workdir.path) if student else ()
  before, now = ({**protocol.fixed(its, student=student), **protocol.methods(its, begun)}
                 for its in (manifest['config'], config))
  return _accepted(workdir, {'config': protocol.differences(before, now)}, config['accept'])


def _begun(workdir: epath.Path) -> list[str]:
  """Methods that students have begun to be taught by."""
  return sorted(path.name for path in workdir.glob('student/*'))


def _accepted(
    workdir: Workdir, found: dict[str, list[str]], accept: Sequence[str]
) -> list[str]:
  """Returns the differences that were found in parts to accept; raises ConfigError for others."""
  refused = {part: lines for part, lines in found.items() if lines and part not in accept}
  if refused:
    said = '; '.join(f'{part}: {", ".join(lines)}' for part, lines in refused.items())
    raise errors.ConfigError(
        f'--workdir: {workdir.path} holds a run that was made of something else; {said}. Choose '
        f'another workdir, set this back, or resume knowingly with --accept={",".join(refused)}')
  return [f'{part}: {line}' for part, lines in found.items() for line in lines]


def check_swept(workdir: Workdir, config: dict[str, Any]) -> None:
  """Checks that a run of a sweep can share its tables with those of a config.

  Raises:
    ConfigError: they differ in more than a sweep varies; each difference is named.
  """
  manifest = workdir.manifest()
  if manifest is not None:
    before, now = ({**protocol.swept(its), **protocol.methods(its, _begun(workdir.path))}
                   for its in (manifest['config'], config))
    _accepted(workdir, {'config': protocol.differences(before, now)}, config['accept'])
