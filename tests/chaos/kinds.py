"""The kinds of run that are broken: each a command, and what lies in its folder before."""
import dataclasses
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable

import jax
import numpy as np
import PIL.Image

from tests.chaos import processes
from tests.helpers.limits import EVERY, LIMITS, STEPS
from tests.helpers.runs import read_config, tiny_command

_DIH = ('--config.student.methods=dih',)
_ONE_TEACHER = ('--config.phases=teacher',)


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a command runs: all that it may change lies below `folder`.

  Attributes:
    folder: watched, and compared.
    data: the folder in which digits is prepared, outside of `folder`.
  """

  folder: pathlib.Path
  data: pathlib.Path

  @property
  def work(self) -> pathlib.Path:
    """Returns the workdir."""
    return self.folder / 'work'

  @property
  def home(self) -> pathlib.Path:
    """Returns the user's home, in which caches lie."""
    return self.folder / 'home'


@dataclasses.dataclass(frozen=True)
class Command:
  """A command line of one of the programs.

  Attributes:
    program: 'main', 'sweep' or 'report'.
    arguments: of the program, without its name.
    compiled: the folder for compiled programs; '' is the one that all tries share.
    after: a path that must exist before the command begins, or None.
    limited: whether the loss is infinite where the learning rate is above one of the `LIMITS`.
  """

  program: str
  arguments: tuple[str, ...]
  compiled: str = ''
  after: pathlib.Path | None = None
  limited: bool = False

  def execute(self, place: Place) -> int:
    """Runs the command in this process, and returns the exit code."""
    from kdih import main
    from kdih.report import __main__ as report
    from kdih.sweep import __main__ as sweep

    while self.after and not self.after.exists():
      time.sleep(0.01)
    os.environ['HOME'] = str(place.home)
    if self.compiled:  # Set in the config, it would leave out what compiles in half a second.
      jax.config.update('jax_compilation_cache_dir', self.compiled)
    if self.limited:
      _limit()
    module = {'main': main, 'sweep': sweep, 'report': report}[self.program]
    sys.argv = [str(module.__file__), *self.arguments]
    return module.main(list(sys.argv))

  def __str__(self):
    return ' '.join([f'python -m kdih.{self.program}', *self.arguments])


def _limit() -> None:
  """Lets the loss of this process's training be infinite above the `LIMITS`."""
  from kdih.training import loop
  train_from = loop.train_from

  def limited(step):
    def limited_step(state, *args):
      before, scale = int(state.step), float(state.learning_rate_scale)
      state, metrics = step(state, *args)
      factors = [np.inf if scale > LIMITS.get(number, 1) else 1
                 for number in range(before + 1, int(state.step) + 1)]
      return state, {**metrics, 'loss': metrics['loss'] * np.array(factors, np.float32)}

    return limited_step

  loop.train_from = lambda program, *args: train_from(
      dataclasses.replace(program, step=limited(program.step)), *args)


@dataclasses.dataclass(frozen=True)
class Kind:
  """A kind of run.

  Attributes:
    name: for the command line and the summary.
    command: of a place.
    prepare: puts into a place what the command needs; runs once, in a process of its own.
    processes: how many run the command at the same time.
    share: how many of the tries it gets, compared with other kinds.
  """

  name: str
  command: Callable[[Place], Command]
  prepare: Callable[[Place], None] = lambda place: None
  processes: int = 1
  share: int = 1


def _program(program: str, *overrides: str) -> Callable[[Place], Command]:
  def command(place: Place) -> Command:
    # A line for each step: by default, a run that resumes writes one line more.
    return Command(program, tuple(tiny_command(
        place.work, str(place.data), '--config.log_every_steps=1', *overrides)[1:]))

  return command


def _main(*overrides: str) -> Callable[[Place], Command]:
  return _program('main', *overrides)


def _sweep(*overrides: str) -> Callable[[Place], Command]:
  return _program('sweep', *overrides)


def _report(place: Place) -> Command:
  return Command('report', (str(place.work),))


SWEPT = _sweep('--methods=ce,kd', '--seeds=1,2')


def sweep_is_finished(place: Place) -> None:
  assert SWEPT(place).execute(place) == 0


def images_lie_in_folders(place: Place) -> None:
  rng = np.random.default_rng(0)
  for split, count in (('train', 12), ('test', 4)):
    for label in ('ant', 'bee', 'cow'):
      folder = place.folder / 'images' / split / label
      folder.mkdir(parents=True)
      for number in range(count):
        pixels = rng.integers(0, 256, (9, 8, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f'{number}.png')


def _folder(place: Place) -> Command:
  return _main(*_ONE_TEACHER, '--config.data.name=image_folder', '--config.data.train_split=train',
               f'--config.data.folder={place.folder / "images"}', '--config.data.test_split=test',
               '--config.data.image_size=8', '--config.teacher.train.global_batch_size=8')(place)


def _staged(place: Place) -> Command:
  return _main(*_ONE_TEACHER, f'--config.data.data_dir=file://{place.data}')(place)


def _compiled(place: Place) -> Command:
  return dataclasses.replace(
      _main(*_ONE_TEACHER)(place), compiled=str(place.home / 'compiled'))


def _rewinding(place: Place) -> Command:
  return dataclasses.replace(_main(
      *_ONE_TEACHER, '--config.on_nan=rewind', '--config.max_rewinds=10',
      f'--config.teacher.train.length={STEPS}',
      f'--config.teacher.train.evaluate_every={EVERY}')(place), limited=True)


_TOGETHER = ('--methods=kd', '--seeds=1,2', '--config.data.order_seed=4', '--together')

KINDS = {kind.name: kind for kind in (
    Kind('phases', _main(*_DIH), share=3),
    Kind('rewind', _rewinding, share=2),
    Kind('methods', _main('--config.phases=teacher,student',
                          '--config.student.methods=fitnets,crd'), share=2),
    Kind('sweep', _sweep('--methods=ce,dih', '--seeds=1'), share=2),
    Kind('two_sweeps', _sweep('--methods=kd', '--seeds=1,2'), processes=2, share=2),
    Kind('together', _sweep(*_TOGETHER), share=2),
    Kind('cache', _main('--config.phases=teacher,student', '--config.student.methods=kd',
                        '--config.compute.cache=all_views',
                        '--config.compute.cache_place=disk'), share=2),
    Kind('folder', _folder, images_lie_in_folders),
    Kind('streaming', _main(*_ONE_TEACHER, '--config.data.loader=streaming')),
    Kind('report', _report, sweep_is_finished, share=2),
    Kind('staged', _staged, share=2),
    Kind('compiled', _compiled),
    # In its teacher's training there is time for a second command.
    Kind('slow_teacher', _sweep(
        '--methods=kd', '--seeds=1', '--config.teacher.train.length=600',
        '--config.teacher.train.evaluate_every=200', '--config.log_every_steps=50'), share=0),
    Kind('lines', _main(*_ONE_TEACHER, '--config.log_every_steps=3')),
)}


class Ground:
  """The folders in which all kinds run.

  Args:
    root: a folder of its own.
  """

  def __init__(self, root: pathlib.Path):
    self.root = root
    self._data = root / 'tfds'
    if not self._data.exists():
      processes.call(_prepare_digits, str(self._data))

  def _template(self, kind: Kind) -> pathlib.Path:
    """Returns a folder with what the kind needs, made where it runs."""
    place, template = self.place(kind), self.root / 'templates' / kind.name
    if template.exists():
      return template
    shutil.rmtree(place.folder, ignore_errors=True)
    place.home.mkdir(parents=True)
    processes.call(kind.prepare, place)
    half = template.with_name(f'{kind.name}.half')  # Of a command that was killed meanwhile.
    shutil.rmtree(half, ignore_errors=True)
    shutil.copytree(place.folder, half, symlinks=True)
    half.rename(template)
    return template

  def place(self, kind: Kind) -> Place:
    """Returns the place where tries of a kind run, always the same: its path is in the results."""
    return Place(self.root / 'tries' / kind.name, self._data)

  def fresh(self, kind: Kind) -> Place:
    """Returns the place of a kind as it is before the first command."""
    template, place = self._template(kind), self.place(kind)
    place.folder.mkdir(parents=True, exist_ok=True)
    for path in place.folder.iterdir():  # The folder itself may be a file system of its own.
      if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
      else:
        path.unlink()
    shutil.copytree(template, place.folder, dirs_exist_ok=True, symlinks=True)
    return place


def _prepare_digits(folder: str) -> None:
  from kdih.data import datasets
  config = read_config(pathlib.Path('unused'), folder)
  datasets.prepare(datasets.open_builder(config.data))
