"""The programs of kdih that are measured: training problems of a run, on made images."""
import contextlib
import copy
import dataclasses
import io
import pathlib
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdih import errors
from kdih.benchmark.measuring import Item
from kdih.cohort.cache import lookup, rows
from kdih.config import plain
from kdih.data.loaders import Loader
from kdih.data.made import MadeImages
from kdih.data.spec import DataSpec
from kdih.data.splits import Splits
from kdih.distillation.signal import TeacherSignal
from kdih.models import taps as taps_lib
from kdih.phases import networks, student as student_lib
from kdih.phases.problem import Problem, TrainingData
from kdih.runtime import devices
from kdih.training import checkpoints, loop, state
from kdih.training.task import LiveSignals, Signals
from kdih.training.together import Students

SPEC = DataSpec('made', (32, 32, 3), 100)
NUM_IMAGES = 10_000
AUGMENTATION: dict[str, Any] = {
    'mean': (0.507, 0.487, 0.441), 'std': (0.267, 0.256, 0.276), 'padding': 4,
    'padding_mode': 'zeros', 'flip': True}
# The numbers of the paper, which are the defaults of the config.
ALPHA, TEMPERATURE = 0.1, 5.0
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 5e-4
SEED = 30
TOGETHER = 3  # The number of students that are trained together.
_LEAST = 4  # The smallest number of steps in a row of the items 'bare', 'loop' and 'cached'.


def made_images(count: int = NUM_IMAGES) -> MadeImages:
  """Returns random images and labels with the shapes of CIFAR-100."""
  return MadeImages(SPEC, count, SEED)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelPair:
  """A teacher and a student, their initial variables and their data.

  Attributes:
    config: the config of a run with this pair.
    built: the networks of the run.
    data: the data of the run.
    examples: the made images that the data consist of.
    frozen: the variables {'teacher', 'heads'}.
    student: the initial variables of the student.
  """

  config: plain.Plain
  built: networks.Networks
  data: TrainingData
  examples: MadeImages
  frozen: dict[str, Any]
  student: dict[str, Any]

  @property
  def batch_size(self) -> int:
    """Returns the global batch size."""
    return self.config.student.train.global_batch_size


def make_pair(
    teacher: str, student: str, batch_size: int, precision: str, examples: MadeImages
) -> ModelPair:
  """Initialises a pair of models.

  The teacher's running statistics are computed from a few images, which gives its logits a usual
  size.

  Raises:
    ConfigError: the devices cannot divide the batch equally, or there are fewer images.
  """
  if batch_size % devices.num_devices():
    raise errors.ConfigError(
        f'--batches: {batch_size} images cannot be divided equally over {devices.num_devices()} '
        f'devices; choose a multiple of {devices.num_devices()}')
  if batch_size > len(examples):
    raise errors.ConfigError(f'--batches: is {batch_size}, but there are only {len(examples)} '
                             'images; choose a smaller number')
  config = plain.config({
      'seed': SEED, 'dtype': precision, 'data.order_seed': SEED, 'data.validation_fraction': 0.0,
      **{f'data.{name}': value for name, value in AUGMENTATION.items()},
      'teacher.name': teacher, 'student.name': student, 'student.methods': ('dih', 'kd'),
      'student.train.global_batch_size': batch_size, 'student.train.schedule': 'constant'})
  built = networks.build(config, SPEC)
  data = TrainingData(config, Splits({'train': examples, 'test': examples}, 'memory'))
  keys = jax.random.split(jax.random.key(SEED), 3)
  frozen = {'teacher': _settled(built.teacher.clone(dtype=jnp.float32), keys[0], data, examples),
            'heads': networks.initialise_heads(built, keys[1])}
  initial = networks.initialise(built.student, keys[2], SPEC.image_shape)
  return ModelPair(config=config, built=built, data=data, examples=examples,
                   frozen=jax.device_get(frozen), student=jax.device_get(initial))


def _settled(
    model: Any, key: jax.Array, data: TrainingData, examples: MadeImages
) -> dict[str, Any]:
  """Returns initial variables of a model, whose running statistics are those of 16 images."""
  model = model.clone(axis_name=None)
  variables = networks.initialise(model, key, SPEC.image_shape)
  images = data.preprocess(jnp.asarray(examples.read(np.arange(16))[0]), jnp.arange(16), None)

  def statistics(variables, images):
    changed = taps_lib.observe(model, variables, images, (), train=True)[1]['batch_stats']
    # The model has a momentum of 0.9: it has kept nine tenths of the initial statistics.
    return jax.tree.map(lambda new, old: (new - 0.9 * old) / 0.1, changed,
                        variables['batch_stats'])

  settle = jax.jit(statistics, compiler_options={'xla_backend_optimization_level': 0})
  return {**variables, 'batch_stats': settle(variables, images)}


def student_problem(pair: ModelPair, method: str, signals: Signals | None = None) -> Problem:
  """Returns the problem of a student by 'dih' or 'kd'; `signals` is its teacher cache, if any."""
  parts = ('teacher', 'heads') if method == 'dih' else ('teacher',)
  teacher = student_lib.teacher_of(
      pair.config, pair.built, {part: pair.frozen[part] for part in parts})
  teacher = dataclasses.replace(teacher, taps=())  # Neither method reads features.
  return student_lib.student_problem(
      pair.config, pair.built, pair.data, initial_variables(pair), method, teacher,
      make_table=None if signals is None else lambda: signals)


def taught_problem(pair: ModelPair, signal: TeacherSignal, images: jax.Array) -> Problem:
  """Returns the problem of DIH on the same images in every step, with a given teacher signal."""
  problem = student_problem(pair, 'dih')
  data = copy.copy(pair.data)
  data.splits = _Still(images, pair.examples.labels()[:len(images)])  # type: ignore[assignment]
  task = dataclasses.replace(
      problem.task, frozen={'signal': signal}, preprocess=_unchanged,
      signals=LiveSignals(lambda frozen, images: jax.tree.map(
          lambda array: array[:len(images)], frozen['signal'])))
  return dataclasses.replace(problem, task=task, data=data)


class _Still(Loader):
  """Splits and loader of a fixed batch of images, which ignore the indices of a batch."""

  def __init__(self, images: jax.Array, labels: np.ndarray):
    self.resident = devices.replicate({'image': images, 'label': labels})

  def loader(self, split: str) -> Loader:
    del split
    return self

  def feeds(self, batches):
    return iter(batches)

  def gather(self, resident, feed):
    return {**feed, 'image': resident['image'], 'label': resident['label']}


def _unchanged(images, index, key):
  del index, key
  return images


def cached_problem(pair: ModelPair) -> Problem:
  """Returns the problem of DIH with a cache of all views, whose teacher signals are all equal."""
  prepare, count = pair.data.student_preprocess, len(pair.examples)
  images = -(-count // devices.num_devices()) * devices.num_devices()
  like = pair.built.cached_signals['dih']
  made = np.full((images, prepare.num_slots, rows.width(like)), 1 / SPEC.num_classes, np.float16)
  return student_problem(pair, 'dih', lookup.DeviceTable(
      made, like, np.arange(count, dtype=np.int32), prepare))


def initial_variables(pair: ModelPair) -> dict[str, Any]:
  """Returns the initial variables of the student, joined with those of a method without any."""
  return state.join(student=pair.student, method={})


class Training:
  """A compiled step and its initial state.

  Args:
    problem: the training problem.
    students: the number of students that are trained together.
    together_by: the way to train them together, one of `choices.TOGETHER_BY`.
    updates: the number of updates in a call that `item` measures.
  """

  def __init__(self, problem: Problem, students: int = 1, together_by: str = 'auto',
               updates: int = 1):
    self._problem, self._updates = problem, updates
    initial = [jax.device_get(problem.state(problem.variables, SEED + number))
               for number in range(students)]
    group = None
    if students > 1:
      group = Students([problem.train_step] * students, together_by)
    self.initial = jax.device_get(group.join(initial)) if group else initial[0]
    self.split = group.split if group else lambda state: (state,)
    self.step = problem.compiled(group)
    self._frozen, self._resident = devices.replicate(problem.task.frozen), problem.resident
    self._feed = jax.device_put(next(iter(problem.feeds(0, [updates]))))

  def arguments(self) -> tuple[Any, ...]:
    """Returns the arguments of the first call of `step`."""
    return devices.replicate(self.initial), *self._constant()

  def item(self, name: str, least: int = 1) -> Item:
    """Returns an item that calls the compiled step again and again on the same batches."""
    carried = [self.arguments()[0]]

    def seconds(count: int) -> float:
      calls = -(-count // self._updates)
      metrics = self._advance(carried, 1)
      jax.block_until_ready((carried, metrics))
      begun = time.perf_counter()
      metrics = self._advance(carried, calls)
      jax.block_until_ready((carried, metrics))
      return (time.perf_counter() - begun) * count / (calls * self._updates)

    return Item(name, seconds, least)

  def _advance(self, carried: list, count: int) -> Any:
    for _ in range(count):
      carried[0], metrics = self.step(carried[0], *self._constant())
    return metrics

  def _constant(self) -> tuple[Any, ...]:
    return self._frozen, self._resident, self._feed

  def loop_item(self, name: str, least: int = 1, per_call: int = 0) -> Item:
    """Returns an item that trains one student by the loop of a run, timed by the loop itself.

    Args:
      name: the name of the item.
      least: the smallest number of steps in a measurement.
      per_call: the number of updates in a call; 0 for the default of a run.
    """
    schedule = self._problem.schedule('benchmark')
    per_call = per_call or schedule.per_call

    def seconds(count: int) -> float:
      total = per_call * (1 + -(-count // per_call))  # The loop does not time its first call.
      program = loop.TrainProgram(
          step=self.step, frozen=self._frozen, resident=self._resident,
          feeds=self._problem.feeds, evaluate=lambda variables, frozen: None,
          schedule=dataclasses.replace(
              schedule, total_steps=total, evaluate_every=total, per_call=per_call))
      with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        initial = self.split(self.initial)[0]
        saved = checkpoints.Checkpoints(pathlib.Path(folder) / 'checkpoints', initial)
        outcome = loop.train(program, loop.Learner(
            state=initial, checkpoints=saved, directory=folder, phase='benchmark', events=False))
      return count * schedule.batch_size / outcome.examples_per_second

    return Item(name, seconds, least)


def items(pair: ModelPair, dih: Training, measures: Sequence[str]) -> list[Item]:
  """Returns the items among `measures` that are whole steps; `dih` is the training by DIH."""
  chosen = [dih.item('bare', _LEAST)]
  if 'loop' in measures:
    chosen.append(dih.loop_item('loop', _LEAST))
  if 'kd' in measures:
    chosen.append(Training(student_problem(pair, 'kd')).item('kd'))
  if 'several' in measures:
    chosen.append(Training(student_problem(pair, 'dih'), students=TOGETHER).item('several'))
  if 'cached' in measures:
    chosen.append(Training(cached_problem(pair)).loop_item('cached', _LEAST))
  return chosen
