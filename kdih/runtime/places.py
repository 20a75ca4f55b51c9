"""Where the folder of a run, a sweep or a report may lie: not in one that another run fills."""
import os
import re

from etils import epath

from kdih import errors
from kdih.runtime import files

PHASES = ('teacher', 'heads', 'student')


def check_workdir(path: epath.PathLike) -> None:
  """Raises ConfigError if the workdir `path` lies in a folder that another run or a sweep fills."""
  _check_outside('--workdir', path, (*PHASES, 'comparison'))
  path = _resolved(path)
  # The report, too, takes a run in such a place for one of the sweep, if it has no teacher.
  if (re.fullmatch(r'seed\d+', path.name) and len(path.parents) > 2
      and files.exists(path.parents[2] / 'sweep.json') and not files.exists(path / 'teacher')):
    raise errors.ConfigError(
        f'--workdir: {path} is the folder of a run of the sweep in {path.parents[2]}, whose '
        'teacher it shares; go on with kdih.sweep there, or choose another folder')


def check_output(path: epath.PathLike) -> None:
  """Raises ConfigError if the report's folder `path` lies in a phase of a run."""
  _check_outside('--output', path, PHASES)


def _check_outside(setting: str, path: epath.PathLike, names: tuple[str, ...]) -> None:
  path = _resolved(path)
  for above in path.parents:
    name = path.relative_to(above).parts[0]
    if name in names and files.exists(above / 'manifest.json'):
      raise errors.ConfigError(
          f'{setting}: {path} lies in the folder {name!r} of the run in {above}, which could not '
          'be resumed then; choose another folder')


def _resolved(path: epath.PathLike) -> epath.Path:
  return epath.Path(path if files.is_remote(path) else os.path.realpath(path))
