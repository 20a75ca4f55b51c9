"""What is measured of kdih, made of what a run is made of. All that the benchmark asks of the rest
of kdih is here.
"""
import contextlib
import dataclasses
import io
import pathlib
import tempfile
import time
import types
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from kdih import errors, methods
from kdih.benchmark.measuring import Item
from kdih.cohort import frozen_teacher, head_modules
from kdih.cohort.cache import lookup
from kdih.cohort.members import make_teach
from kdih.data import augment, loaders, sampling
from kdih.data.spec import DataSpec
from kdih.distillation.method import Context
from kdih.models import registry, taps as taps_lib
from kdih.phases import networks, student as student_lib
from kdih.runtime import devices
from kdih.training import checkpoints, loop, optimizer, state, steps_per_call
from kdih.training.loop_schedule import LoopSchedule
from kdih.training.step import make_train_step
from kdih.training.task import Learning, Task

SPEC = DataSpec('made', (32, 32, 3), 100)
NUM_IMAGES = 10_000
AUGMENTATION: dict[str, Any] = {
    'mean': (0.507, 0.487, 0.441), 'std': (0.267, 0.256, 0.276), 'padding': 4,
    'padding_mode': 'zeros', 'flip': True}
ALPHA, TEMPERATURE = 0.1, 5.0
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 5e-4
SEED = 30
TOGETHER = 3  # Students that are trained at once.
_LEAST = 4  # Steps in a row of the two that tell what the loop costs.
_METHODS = {
    'dih': {'kind': 'dih', 'reduction': 'sum', 'cross_entropy': 'per_branch', 'members': 'cohort',
            'weights': 'equal'},
    'kd': {'kind': 'kd', 'scale': 'one'},
}
_OPTIONS = {'alpha': ALPHA, 'temperature': TEMPERATURE, 'gain': 1.0, 'standardise': False}


class MadeImages:
  """Random images and labels, of the size of CIFAR-100's."""

  def __init__(self, num_images: int = NUM_IMAGES):
    rng = np.random.default_rng(SEED)
    self.images = rng.integers(0, 256, (num_images, *SPEC.image_shape), np.uint8)
    self._labels = rng.integers(0, SPEC.num_classes, num_images, np.int32)

  def __len__(self) -> int:
    return len(self.images)

  def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """See `kdih.data.loaders.Examples`."""
    return self.images[indices], self._labels[indices]

  def labels(self) -> np.ndarray:
    """int32 labels of all."""
    return self._labels


@dataclasses.dataclass(frozen=True)
class Lab:
  """A pair, its fresh variables and what it learns from.

  Attributes:
    built: its networks.
    frozen: variables {'teacher', 'heads'}.
    student: variables of the student.
    examples: the made images.
    loader: that holds them.
    batch_size: global.
  """

  built: networks.Networks
  frozen: dict[str, Any]
  student: dict[str, Any]
  examples: MadeImages
  loader: loaders.Loader
  batch_size: int

  def feeds(self, start: int, sizes: Sequence[int]):
    """What calls of so many updates are fed with from update `start` on, as a run's."""
    subset = np.arange(len(self.examples), dtype=np.int32)
    batches = sampling.train_batches(subset, self.batch_size, SEED, start, start + sum(sizes))
    return steps_per_call.stacked(
        map(devices.shard, self.loader.feeds(map(devices.share, batches))), sizes)


def make_lab(
    teacher: str, student: str, batch_size: int, precision: str, examples: MadeImages
) -> Lab:
  """Initialises a pair of models.

  The teacher's running statistics become those of a few images, so that its logits are of a usual
  size. Raises ConfigError where the devices cannot share the batch evenly.
  """
  if batch_size % devices.num_devices():
    raise errors.ConfigError(f'--batches: {batch_size} is no multiple of the '
                             f'{devices.num_devices()} devices')
  if batch_size > len(examples):
    raise errors.ConfigError(f'--batches: {batch_size} is more than the {len(examples)} images')
  module, learner = (registry.create(name, SPEC.num_classes, dtype=jnp.dtype(precision),
                                     axis_name=devices.AXIS) for name in (teacher, student))
  taps = taps_lib.choose_taps(module, SPEC.image_shape, ())
  context = Context(len(taps) + 1, devices.AXIS)
  chosen = {name: methods.create(name, {**_METHODS[name], **_OPTIONS}, context)
            for name in _METHODS}
  heads = head_modules.Heads(SPEC.num_classes)
  built = networks.Networks(SPEC, module, learner, heads, taps, chosen, {}, {}, {}, False)
  keys = jax.random.split(jax.random.key(SEED), 3)
  frozen = {'teacher': _settled(registry.create(teacher, SPEC.num_classes), keys[0], examples),
            'heads': networks.initialise_heads(built, keys[1])}
  return Lab(built, jax.device_get(frozen),
             jax.device_get(networks.initialise(learner, keys[2], SPEC.image_shape)),
             examples, loaders.make_loader('memory', examples), batch_size)


def _settled(model, key: jax.Array, examples: MadeImages) -> dict[str, Any]:
  """Variables whose batch statistics are those of 16 images."""
  variables = networks.initialise(model, key, SPEC.image_shape)
  images = preprocess()(jnp.asarray(examples.images[:16]), jnp.arange(16), None)

  def statistics(variables, images):
    changed = taps_lib.observe(model, variables, images, (), train=True)[1]['batch_stats']
    # The model kept nine tenths of what there was.
    return jax.tree.map(lambda new, old: (new - 0.9 * old) / 0.1, changed,
                        variables['batch_stats'])

  settle = jax.jit(statistics, compiler_options={'xla_backend_optimization_level': 0})
  return {**variables, 'batch_stats': settle(variables, images)}


def preprocess(**changed: Any) -> augment.Preprocess:
  """The input's crop, flip and normalisation; `changed` are fields of `AUGMENTATION`."""
  return augment.make_preprocess(**{**AUGMENTATION, **changed})


def make_optimizer() -> optax.GradientTransformation:
  """The paper's."""
  train: Any = types.SimpleNamespace(optimizer='sgd', weight_decay=WEIGHT_DECAY, momentum=MOMENTUM,
                                     nesterov=True)
  return optimizer.make_optimizer(train, optax.constant_schedule(LEARNING_RATE))


def quick_teacher(lab: Lab, taps: Sequence[str]) -> tuple[nn.Module, Any]:
  """The teacher's module and variables as a run asks them for features at `taps`."""
  return frozen_teacher.prepare(lab.built.teacher, lab.frozen['teacher'], taps, SPEC.image_shape,
                                fold_batch_norm=True, dtype='')


def student_task(lab: Lab, method: str) -> Task:
  """The student learns by 'dih' or 'kd', as in a run."""
  built, taps, chosen = lab.built, tuple(lab.built.taps), lab.built.methods[method]
  teacher, variables = quick_teacher(lab, taps if chosen.taught_by == 'cohort' else ())
  teach = make_teach(chosen.taught_by, teacher, (), built.heads, taps)
  return student_lib.student_task(
      built.student, (), chosen, teach, {**lab.frozen, 'teacher': variables})


def taught_task(lab: Lab, said: Any) -> Task:
  """DIH with the members' logits `said` given, so that nobody has to be asked."""
  return student_lib.student_task(lab.built.student, (), lab.built.methods['dih'],
                                  lambda frozen, images: (None, frozen['said']), {'said': said})


def cached_task(lab: Lab) -> Task:
  """DIH with a cache of what the cohort says of every view, which is the same of all."""
  prepare, count = preprocess(), len(lab.examples)
  images = -(-count // devices.num_devices()) * devices.num_devices()
  width = lab.built.heard_widths['dih']
  rows = np.full((images, prepare.num_slots, width), 1 / SPEC.num_classes, np.float16)
  table = lookup.DeviceTable(rows, np.arange(count, dtype=np.int32), prepare)
  teach = make_teach('labels', lab.built.teacher, (), lab.built.heads, ())
  return student_lib.student_task(
      lab.built.student, (), lab.built.methods['dih'], teach, {}, table=table)


def initial_variables(lab: Lab) -> dict[str, Any]:
  """Of a student, and of the method, which has none."""
  return state.join(student=lab.student, method={})


class Training:
  """A compiled step and the states that it has brought forward.

  Args:
    lab: what it learns from.
    task: what it learns.
    images: float images for every step in place of the loader's, if given.
    students: how many learn at once.
    together_by: how, one of `choices.TOGETHER_BY`.
    updates: of one call that `item` measures.
  """

  def __init__(self, lab: Lab, task: Task, images: jax.Array | None = None, students: int = 1,
               together_by: str = 'auto', updates: int = 1):
    self._lab, self._frozen = lab, devices.replicate(task.frozen)
    tx, variables = make_optimizer(), initial_variables(lab)
    self.initial = jax.device_get(tuple(
        state.create(variables, tx, SEED + number, SEED) for number in range(students)))
    resident, gather = lab.loader.resident, lab.loader.gather
    prepare: Any = preprocess()
    if images is not None:
      label = lab.examples.labels()[:len(images)]
      resident = devices.replicate({'image': images, 'label': label})
      gather, prepare = _all_of_them, _as_they_are
    self.step = make_train_step(
        learning=[Learning(task, tx)] * students, gather=gather, preprocess=prepare,
        steps_per_epoch=len(lab.examples) / lab.batch_size, together_by=together_by,
        resident=resident, table=task.table)
    self._resident = {**resident, **task.table.resident}
    self._updates = updates
    self._feed = jax.device_put(next(iter(lab.feeds(0, [updates]))))

  def arguments(self) -> tuple[Any, ...]:
    """Those of `step`, at the beginning."""
    return devices.replicate(self.initial), *self._constant()

  def item(self, name: str, least: int = 1) -> Item:
    """Its steps, one call after the other on the same batches, and nothing else."""
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

  def loop_item(self, name: str, least: int = 1, asked: int = 0) -> Item:
    """The steps as a run makes them: its loop, sampling, metrics, on its clock.

    `asked` updates a call, 0 for as many as a run makes by default.
    """
    batch_size = self._lab.batch_size
    log_every = 50  # As the default of a run.
    per_call = steps_per_call.per_call(asked, log_every, streaming=False)

    def seconds(count: int) -> float:
      total = per_call * (1 + -(-count // per_call))  # The loop's clock leaves out the first call.
      schedule = LoopSchedule('benchmark', total, total, log_every, batch_size,
                          len(self._lab.examples) / batch_size, 0, per_call)
      program = loop.Program(
          lambda states, feed: self.step(states, self._frozen, self._resident, feed),
          self._lab.feeds, lambda variables: None, schedule)
      with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        initial = self.initial[0]
        kept = checkpoints.Checkpoints(pathlib.Path(folder) / 'checkpoints', initial)
        outcome = loop.train(program, loop.Learner(
            initial, kept, folder, 'benchmark', events=False))
      return count * batch_size / outcome.examples_per_second

    return Item(name, seconds, least)


def items(lab: Lab, dih: Training, measures: Sequence[str]) -> list[Item]:
  """The whole steps among `measures`; `dih` is DIH's."""
  found = [dih.item('bare', _LEAST)]
  if 'loop' in measures:
    found.append(dih.loop_item('loop', _LEAST))
  if 'kd' in measures:
    found.append(Training(lab, student_task(lab, 'kd')).item('kd'))
  if 'several' in measures:
    found.append(Training(lab, student_task(lab, 'dih'), students=TOGETHER).item('several'))
  if 'cached' in measures:
    found.append(Training(lab, cached_task(lab)).loop_item('cached', _LEAST))
  return found


def _all_of_them(resident, feed):
  return {**feed, **resident}


def _as_they_are(images, index, key):
  del index, key
  return images
