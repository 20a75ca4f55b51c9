"""Mutations: a config, or one file of a run, a sweep, a data set or an export, is changed.

The command then succeeds, or it is refused in one line; it ends without a traceback, without
writing outside of its folder, and in memory that the files warrant. hypothesis draws what is
changed. A try is named `mutations:KIND:BATCH.NUMBER`: the input of this number in a batch of
`BATCH_SIZE`, which is drawn from the number of the batch.

To add a kind, add a `Mutated` to `KINDS`.
"""
import contextlib
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import re
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed as seeded, settings, strategies as st

from kdih import errors
from kdih.config.fields import FIELDS
from tests.chaos import file_events, kinds, processes
from tests.chaos.kinds import Place
from tests.chaos.tries import Arena, Outcome, problems_of
from tests.helpers.damage import places
from tests.helpers.field_values import broken, valid
from tests.helpers.fuzzing import JSON, TEXTS
from tests.helpers.runs import read_config

BATCH_SIZE = 50
_SPARE = 2**28  # Bytes of memory that a process may need beyond an undisturbed one.
# These fields name what is downloaded, imported, or waited for.
_LEFT_ALONE = ('data.name', 'data.data_dir', 'data.folder', 'teacher.variables', 'heads.variables',
               'compute.compilation_cache')


@dataclasses.dataclass(frozen=True)
class FileChange:
  """A change of one file.

  Attributes:
    which: of the files below a folder, from 0 to 1.
    way: what `_WAYS` lists.
    where: in the file, from 0 to 1.
    value: for a JSON file.
    name: for the way 'name'.
  """

  which: float
  way: str
  where: float
  value: Any
  name: str

  def apply(self, folder: pathlib.Path, outside: pathlib.Path) -> str:
    """Changes a file below `folder`, and returns its name and the way."""
    # A folder that is the user's own choice may be a link.
    found = sorted(path for path in folder.rglob('*') if path.is_file()
                   and not (self.way == 'link of the folder' and path.parent == folder))
    path = found[int(self.which * len(found))]
    _WAYS[self.way](path, self, outside)
    return f'{self.way} {path.relative_to(folder)}'


def _in_json(path: pathlib.Path, change: FileChange, outside: pathlib.Path) -> None:
  """Replaces, removes or adds a value; cuts the file if it is no JSON."""
  try:
    content = json.loads(path.read_text())
  except ValueError:
    _cut(path, change, outside)
    return
  found = list(places(content))
  *parents, key = (None, *found[int(change.where * len(found))])
  group = functools.reduce(lambda group, key: group[key], parents[1:], content)
  if key is None:
    content = change.value
  elif change.which * 100 % 3 < 1 and isinstance(group, dict):
    del group[key]
  elif change.which * 100 % 3 < 2 and isinstance(group, dict):
    group[change.name] = change.value
  else:
    group[key] = change.value
  path.write_text(json.dumps(content))


def _cut(path: pathlib.Path, change: FileChange, _) -> None:
  os.truncate(path, int(change.where * path.stat().st_size))


def _flip(path: pathlib.Path, change: FileChange, _) -> None:
  content = bytearray(path.read_bytes() or b'\0')
  content[int(change.where * len(content))] ^= 1 << int(change.which * 1000) % 8
  path.write_bytes(content)


def _grow(path: pathlib.Path, *_) -> None:
  os.truncate(path, 2**31)  # A hole: it takes no room on the disk.


def _replace_by(make: Callable[[pathlib.Path], Any]):
  def replace(path: pathlib.Path, *_) -> None:
    path.unlink()
    make(path)

  return replace


def _link(path: pathlib.Path, change: FileChange, outside: pathlib.Path) -> None:
  path.unlink()
  path.symlink_to(outside / 'file' if change.where < 0.5 else outside)


def _link_folder(path: pathlib.Path, change: FileChange, outside: pathlib.Path) -> None:
  """Lets a link lead to another folder, or to a copy with a FIFO in the place of the file."""
  if change.where < 0.5:
    outside /= 'copy'
    shutil.copytree(path.parent, outside, symlinks=True)
    _replace_by(os.mkfifo)(outside / path.name)
  shutil.rmtree(path.parent)
  path.parent.symlink_to(outside)


def _rename(path: pathlib.Path, change: FileChange, _) -> None:
  with contextlib.suppress(OSError, ValueError):  # Not every text is a name.
    path.rename(path.with_name(change.name))


_WAYS: dict[str, Callable[[pathlib.Path, FileChange, pathlib.Path], None]] = {
    'json': _in_json, 'cut': _cut, 'flip': _flip, 'grow': _grow, 'link': _link,
    'link of the folder': _link_folder, 'name': _rename,
    'remove': lambda path, *_: path.unlink(),
    'deep': lambda path, *_: path.write_text('[' * 20_000),
    'noise': lambda path, change, _: path.write_bytes(str(change).encode('utf-16')),
    'pipe': _replace_by(os.mkfifo), 'folder': _replace_by(os.mkdir)}

_FRACTIONS = st.floats(0, 1, exclude_max=True)
_FILE_CHANGES = st.builds(
    FileChange, _FRACTIONS, st.sampled_from(['json'] * 8 + ['cut', 'flip'] * 3 + sorted(_WAYS)),
    _FRACTIONS, JSON, TEXTS)


@st.composite
def _config_changes(draw) -> dict[str, Any]:
  """Values for some fields, one of which may be broken."""
  names = draw(st.lists(st.sampled_from(sorted(FIELDS.keys() - set(_LEFT_ALONE))), min_size=1,
                        max_size=5, unique=True))
  values = {name: draw(valid(FIELDS[name].kind)) for name in names}
  if draw(st.booleans()):
    values[names[0]] = draw(broken(FIELDS[names[0]].kind))
  return values


@dataclasses.dataclass(frozen=True)
class Mutated:
  """A kind of input.

  Attributes:
    prepare: makes what is changed; runs once, in a process of its own.
    folder: what is changed, below the place.
    execute: runs the commands that read it, and returns their exit codes.
    inputs: draws what is changed.
    share: how many of the tries it gets, compared with other kinds.
  """

  prepare: Callable[[Place], None]
  folder: str
  execute: Callable[[Place, Any], list[int]]
  inputs: st.SearchStrategy = _FILE_CHANGES
  share: int = 1


def _nothing(place: Place) -> None:
  del place


def _check_config(place: Place, values: Any) -> list[int]:
  from kdih.phases import pipeline
  from kdih.runtime import program

  def body(_) -> int:
    config = read_config(place.work, str(place.data))
    # As a config file may do it.
    with errors.of_users_code('--config: '), config.unlocked(), config.ignore_type():
      for name, value in (values or {}).items():
        *parents, key = name.split('.')
        functools.reduce(lambda group, key: group[key], parents, config)[key] = value
    pipeline.prepare_run(config, place.work)
    return 0

  return [program.main([], '', body)]


def _run_of_all_phases(place: Place) -> None:
  assert kinds.KINDS['phases'].command(place).execute(place) == 0


def _run_with_comparison(place: Place) -> None:
  _run_of_all_phases(place)
  assert kinds.KINDS['report'].command(place).execute(place) == 0


def _sweep_with_comparison(place: Place) -> None:
  kinds.sweep_is_finished(place)
  assert kinds.KINDS['report'].command(place).execute(place) == 0


def _interrupted(place: Place) -> None:
  _run_of_all_phases(place)
  (place.work / 'student/dih/result.json').unlink()


def _main_and_report(place: Place, _) -> list[int]:
  return [kinds.KINDS['phases'].command(place).execute(place),
          kinds.KINDS['report'].command(place).execute(place)]


def _sweep_and_report(place: Place, _) -> list[int]:
  return [kinds.KINDS['report'].command(place).execute(place),
          kinds.SWEPT(place).execute(place)]


def _data_is_copied(place: Place) -> None:
  shutil.copytree(place.data, place.folder / 'tfds')


def _prepare(*overrides: str) -> Callable[[Place, Any], list[int]]:
  """Returns a function that checks a run, and reads its data."""
  def execute(place: Place, _) -> list[int]:
    from kdih.phases import pipeline
    from kdih.runtime import program

    def body(_) -> int:
      config = read_config(place.work, str(place.folder / 'tfds'), *(
          text.format(place=place.folder) for text in overrides))
      experiment = pipeline.prepare_run(config, place.work)
      experiment.data.splits.loader('train')
      return 0

    return [program.main([], '', body)]

  return execute


def _load_export(place: Place, _) -> list[int]:
  from kdih.phases import exported_variables
  from kdih.runtime import program

  def body(_) -> int:
    exported_variables.load_model(place.work / 'student/dih/variables',
                                  'tests.helpers.tiny_nets:TinyNet')
    return 0

  return [program.main([], '', body)]


_FOLDER = ('--config.data.name=image_folder', '--config.data.train_split=train',
           '--config.data.folder={place}/images', '--config.data.test_split=test',
           '--config.data.image_size=8')

KINDS = {
    'config': Mutated(_nothing, '', _check_config, _config_changes(), share=10),
    'run': Mutated(_run_with_comparison, 'work', _main_and_report, share=2),
    'resumed': Mutated(_interrupted, 'work/student/dih', _main_and_report, share=2),
    'sweep': Mutated(_sweep_with_comparison, 'work', _sweep_and_report, share=3),
    'data': Mutated(_data_is_copied, 'tfds', _prepare(), share=5),
    'images': Mutated(kinds.images_lie_in_folders, 'images', _prepare(*_FOLDER), share=3),
    'export': Mutated(_run_of_all_phases, 'work/student/dih/variables', _load_export, share=6),
}


def plan(arena: Arena, chosen: list[str], seed: int) -> Iterator[str]:
  """Yields the names of tries, spread over the kinds by their shares, in turns."""
  del arena
  turns = itertools.cycle([stream for name in chosen for stream in [_names(name, seed)]
                           * KINDS[name].share])
  return map(next, turns)


def _names(kind_name: str, seed: int) -> Iterator[str]:
  for number in itertools.count():
    batch, at = divmod(number, BATCH_SIZE)
    yield f'mutations:{kind_name}:{1000 * seed + batch}.{at}'


@functools.lru_cache(len(KINDS))
def inputs(name: str, batch: int) -> list[Any]:
  """Returns the inputs of a batch, the same each time."""
  found: list[Any] = []

  @settings(max_examples=BATCH_SIZE, database=None, deadline=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck))
  @seeded(batch)
  @given(KINDS[name].inputs)
  def draw(value):
    found.append(value)

  draw()
  return found


def attempt(arena: Arena, name: str) -> Outcome:
  """Makes the try of this name."""
  _, kind_name, at = name.split(':')
  batch, number = map(int, at.split('.'))
  drawn = inputs(kind_name, batch)
  return _attempt(arena, kind_name, drawn[number % len(drawn)])


@functools.cache
def _ground_of(kind_name: str) -> kinds.Kind:
  """Returns the kind of run whose folder a kind of input changes."""
  return kinds.Kind(f'mutated_{kind_name}', kinds.KINDS['phases'].command,
                    KINDS[kind_name].prepare)


@functools.cache
def _memory(arena: Arena, kind_name: str) -> int:
  """Returns the bytes that an undisturbed process needs."""
  outcome = _attempt(arena, kind_name, None)
  if outcome.problems:
    raise RuntimeError(f'{kind_name}: an undisturbed try fails: {outcome.problems}')
  return int(outcome.harmed[-1])


def _attempt(arena: Arena, kind_name: str, value: Any) -> Outcome:
  """Makes a try with an input, or with None an undisturbed one."""
  kind, outside = KINDS[kind_name], arena.ground.root / 'outside'
  memory = _memory(arena, kind_name) if value is not None else 0
  place = arena.ground.fresh(_ground_of(kind_name))
  shutil.rmtree(outside, ignore_errors=True)
  outside.mkdir()
  (outside / 'file').write_text('{}')
  changed = repr(value)[:500]
  if isinstance(value, FileChange):
    changed = f'{value.apply(place.folder / kind.folder, outside)}: {changed}'
  before = _stamps(outside)
  ended, = processes.run(lambda note: _watched(place, kind, value, note))
  outcome = Outcome(_problems(ended), [changed], seconds=ended.seconds)
  if _stamps(outside) != before:
    outcome.problems.append('outside: what a link points to has changed')
  used = [int(note.split()[1]) for note in ended.notes if note.startswith('memory ')]
  if value is None:
    outcome.harmed += map(str, used)
  elif used and used[0] > memory + _SPARE + _of_images(value):
    outcome.problems.append(f'memory: {used[0] - memory:,} bytes more than an undisturbed process')
  return outcome


def _of_images(value: Any) -> int:
  """Returns the bytes of the images of a config's size, twice: on their way to the device."""
  side = value.get('data.image_size', 0) if isinstance(value, dict) else 0
  return 2 * 250 * side**2 if isinstance(side, int) else 0


def _problems(ended: processes.Ended) -> list[str]:
  """Returns what is wrong with how a process has ended; that it names damage is right here."""
  found = [problem for problem in problems_of(ended, frozenset({0, 1, 2}))
           if not problem.startswith(('called damaged: ', 'no line: '))]
  refused = [note for note in ended.notes if note.startswith('code ') and note != 'code 0']
  lines = [line for line in ended.said.splitlines() if line.startswith('kdih: ')]
  if not found and len(lines) != len(refused):
    found.append(f'lines: {len(refused)} commands were refused by {len(lines)} lines')
  return found + [note for note in ended.notes if note.startswith('outside: ')]


def _watched(place: Place, kind: Mutated, value: Any, note: processes.Note) -> int:
  """Runs the commands of a kind; notes writes outside of its place, and the memory."""
  allowed = (str(place.folder), '/dev/', '/proc/', str(place.data.parent / 'compiled'))
  # TFDS makes such a folder where it looks for what a data set holds, and leaves it empty.
  of_tfds = re.compile(rf'os\.mkdir {re.escape(tempfile.gettempdir()[1:])}/tmp\w{{8}}tfds')

  def react(event: file_events.Event) -> None:
    if (event.changes and not f'/{event.path}'.startswith(allowed)
        and not of_tfds.fullmatch(str(event))):
      note(f'outside: {event.name} /{event.path}')

  os.environ['HOME'] = str(place.home)
  file_events.watch('', react)
  try:
    codes = kind.execute(place, value)
    for code in codes:
      note(f'code {code}')
    return max(codes)
  finally:
    note(f'memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}')


def _stamps(folder: pathlib.Path) -> dict[str, tuple]:
  return {str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b'')
          for path in sorted(folder.rglob('*'))}
