"""Whether a run may resume: which fields of its config have changed, and whether they may."""
from typing import Any

from etils import epath

from kdih import errors
from kdih.runtime.result_schema import flatten

# Fields that choose what runs or is shown, and change no number of a finished phase.
FREE = ('phases', 'student.methods', 'sweep', 'distributed', 'profile', 'log_every_steps',
        'on_nan', 'max_rewinds', 'data.data_dir', 'compute.steps_per_call', 'compute.prefetch',
        'compute.remat', 'compute.cache_place', 'compute.keep_freed_memory',
        'compute.compilation_cache')


def check(
    path: epath.Path, stored: dict[str, Any], config: dict[str, Any], *,
    defaults: dict[str, Any], free: tuple[str, ...] = (),
) -> None:
  """Raises ConfigError, naming every field that stands in the way, where a run cannot resume.

  Args:
    path: the workdir of the run.
    stored: the config in its manifest, as nested dicts.
    config: that of this command, likewise.
    defaults: every field with its default, likewise: what a field had that kdih did not have yet
      when the run was begun.
    free: fields, or groups of them, that may change here, beside `FREE`.
  """
  before = {**dict(flatten(defaults)), **dict(flatten(stored))}
  now = dict(flatten(config))
  changed = []
  for name in before.keys() | now.keys():
    group, *rest = name.split('.')
    if group == 'methods':  # Those of a method that was never begun here may change.
      may_change = not (path / 'student' / rest[0]).exists()
    else:
      may_change = any(
          name == field or name.startswith(f'{field}.') for field in (*FREE, *free))
    if not may_change and before.get(name) != now.get(name):
      changed.append(f'config.{name} (was {before.get(name)!r}, is {now.get(name)!r})')
  if changed:
    raise errors.ConfigError(
        f'--workdir: {path} holds a run of another config; changed: {", ".join(sorted(changed))}. '
        'Choose another workdir, or set these back')
