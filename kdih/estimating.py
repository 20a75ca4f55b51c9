"""What a sweep would cost: shapes, parameters, FLOPs, memory and time, with nothing trained."""
import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import tensorflow_datasets as tfds

from kdih import (
  cohort,
  cost,
  data,
  errors,
  grid,
  modules,
  optimizer,
  parallel,
  phases,
  pipeline,
  state,
  taps,
  tasks,
)
from kdih.modules import Modules
from kdih.tasks import Task

_TIMED_STEPS = 3
# Images in the splits of what need not be prepared for an estimate.
_KNOWN = {'digits': {'train': 1438, 'test': 359},
          'cifar10': {'train': 50000, 'test': 10000},
          'cifar100': {'train': 50000, 'test': 10000},
          'tiny_imagenet': {'train': 100000, 'validation': 10000}}


@dataclasses.dataclass(frozen=True)
class _Phase:
  """What a phase needs: `flops` in all, `memory` in bytes on one device, `runs` of it."""

  name: str
  parameters: int
  flops: float
  memory: int
  runs: int


def describe(
    pairs: list[grid.Pair], built: list[Modules], num_seeds: int,
    builder: tfds.core.DatasetBuilder,
) -> str:
  """Tables of what each pair consists of, and what each of its phases would cost.

  FLOPs are those of the traced programs, a multiply-add counted as two. Times follow from them
  and from the speed at which this machine trains the first student from labels, measured over a
  few steps on blank images: the order of magnitude, no more. Memory is that of variables,
  gradients, optimizer, resident data and the activations that the backward pass needs.

  Args:
    pairs: to be run.
    built: their modules.
    num_seeds: of the students.
    builder: of the data set, which need not be prepared.
  """
  lines = [f'data: {built[0].spec.name}, images {built[0].spec.image_shape}, '
           f'{built[0].spec.num_classes} classes']
  sizes = _sizes(pairs[0].config, builder)
  if not sizes:
    shapes = (line for pair, one in zip(pairs, built, strict=True) for line in _title(pair, one))
    return '\n'.join([*lines, *shapes, '', f'how long it takes is not known before {builder.name} '
                      'is prepared; nothing was trained or written'])
  speed = _speed(pairs[0], built[0])
  lines.append(f'speed: {speed / 1e9:,.1f} GFLOP/s on {parallel.num_devices()} x '
               f'{jax.devices()[0].device_kind}')
  total, taught = 0.0, set[tuple[str, str]]()
  for pair, one in zip(pairs, built, strict=True):
    lines += _title(pair, one)
    for phase in _phases(pair, one, sizes, num_seeds, taught):
      seconds = phase.flops / speed
      total += seconds * phase.runs
      lines.append(f'  {phase.name:28}{phase.parameters:>14,} parameters {phase.flops:9.2e} FLOPs '
                   f'{phase.memory / 2**20:9,.0f} MiB {_duration(seconds):>9} x {phase.runs}')
  return '\n'.join([*lines, '', f'in all: {_duration(total)}, and what compiling takes; nothing was'
                    ' trained or written'])


def _title(pair: grid.Pair, built: Modules) -> Iterator[str]:
  yield ''
  yield f'{pair.teacher} -> {pair.student}'
  for role in ('teacher', 'student'):
    model, shape = getattr(built, role), built.spec.image_shape
    variables = taps.abstract_variables(model, shape)
    flops = cost.forward_flops(model, variables, shape) or 0
    yield (f'  {role:8}{getattr(pair, role)}: {phases.count(variables["params"]):,} parameters, '
           f'{flops:.2e} FLOPs an image')
  for tap, feature in built.taps.items():
    yield f'  head    {tap} on {feature}'


def _sizes(config: ml_collections.ConfigDict, builder: tfds.core.DatasetBuilder) -> dict[str, int]:
  """Images to train with, to validate with and to test with; {} where that is not known yet."""
  if builder.is_prepared():
    splits = pipeline.open_splits(config, builder)
    known = {split: splits.size(split) for split in ('train', 'test')}
  elif config.data.name in _KNOWN:
    known = {split: _size(_KNOWN[config.data.name], field, config.data[field])
             for split, field in (('train', 'train_split'), ('test', 'test_split'))}
  else:
    return {}
  train, validation = data.split_validation(
      known['train'], config.data.validation_fraction, config.data.validation_seed)
  return {'train': len(train), 'validation': len(validation), 'test': known['test']}


def _size(known: dict[str, int], field: str, split: str) -> int:
  infos = {name: tfds.core.SplitInfo(name=name, shard_lengths=[size], num_bytes=0)
           for name, size in known.items()}
  try:
    parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
  except ValueError as error:
    raise errors.ConfigError(f'config.data.{field}: {split!r} cannot be read '
                             f'({errors.first_line(error)}); such as train[:90%]') from error
  return sum((known[part.splitname] if part.to is None else part.to) - (part.from_ or 0)
             for part in parts)


def _phases(
    pair: grid.Pair, built: Modules, sizes: dict[str, int], num_seeds: int,
    taught: set[tuple[str, str]],
) -> Iterator[_Phase]:
  """What is trained for a pair; a teacher and heads once, noted in `taught`, unless they exist."""
  taught_by, config = {method.taught_by for method in built.methods.values()}, pair.config
  teacher, heads = (pair.teacher, 'teacher'), (pair.teacher, 'heads')
  if not (teacher in taught or config.teacher.variables or taught_by == {'labels'}):
    taught.add(teacher)
    variables = taps.abstract_variables(built.teacher, built.spec.image_shape)
    yield _cost(pair, built, sizes, 'teacher', tasks.teacher_task(built.teacher), variables,
                config.teacher.train, 1)
  if not (heads in taught or config.heads.variables) and 'cohort' in taught_by:
    taught.add(heads)
    task, variables = _heads(built)
    yield _cost(pair, built, sizes, 'heads', task, variables, config.heads.train, 1)
  for name in pair.methods:
    yield from _student_phases(pair, built, sizes, name, num_seeds)


def _student_phases(
    pair: grid.Pair, built: Modules, sizes: dict[str, int], name: str, num_seeds: int
) -> Iterator[_Phase]:
  """Assistants, what is prepared, and the student."""
  method, train = built.methods[name], pair.config.student.train
  num_examples, teacher = sizes['train'] + sizes['validation'], built.teacher
  for model in method.assistants:
    module = built.assistants[model]
    assistant = dataclasses.replace(built, teacher=teacher, student=module, student_taps={},
                                    teacher_taps={})
    yield _cost(pair, built, sizes, f'  {name}: {model}', *_student(assistant, name, num_examples),
                train, num_seeds)
    teacher = module
  built = dataclasses.replace(built, teacher=teacher)
  if method.prepares:
    yield _cost(pair, built, sizes, f'  {name}: prepare',
                *_student(built, name, num_examples, preparing=True), pair.config.student.prepare,
                num_seeds)
  yield _cost(pair, built, sizes, f'student {name}', *_student(built, name, num_examples), train,
              num_seeds)


def _heads(built: Modules) -> tuple[Task, Any]:
  teacher = taps.abstract_variables(built.teacher, built.spec.image_shape)
  task = tasks.heads_task(built.teacher, built.heads, teacher, tuple(built.taps))
  return task, modules.abstract_heads(built)


def _student(
    built: Modules, name: str, num_examples: int, *, preparing: bool = False
) -> tuple[Task, Any]:
  method, shape = built.methods[name], built.spec.image_shape
  frozen: dict[str, Any] = {}
  if method.taught_by != 'labels':
    frozen['teacher'] = taps.abstract_variables(built.teacher, shape)
  if method.taught_by == 'cohort':
    frozen['heads'] = modules.abstract_heads(built)
    frozen['weights'] = {rule: jax.ShapeDtypeStruct((len(built.taps) + 1,), jnp.float32)
                         for rule in cohort.RULES}
  if method.needs_train_labels:
    frozen['train_labels'] = jax.ShapeDtypeStruct((max(num_examples, 1),), jnp.int32)
  teach = tasks.make_teach(method.taught_by, built.teacher, tuple(built.teacher_taps),
                           built.heads, tuple(built.taps))
  task = tasks.student_task(built.student, tuple(built.student_taps), method, teach, frozen,
                            preparing=preparing)
  return task, state.join(student=taps.abstract_variables(built.student, shape),
                          method=modules.abstract_method(built, name, max(num_examples, 1)))


def _cost(
    pair: grid.Pair, built: Modules, sizes: dict[str, int], name: str, task: Task, variables: Any,
    train: Any, runs: int,
) -> _Phase:
  batch_size = max(train.global_batch_size // parallel.num_devices(), 1)
  duration = optimizer.Duration(train.unit, max(sizes['train'], 1) / train.global_batch_size)
  steps = duration.steps(train.length)
  flops, program = cost.analyse(
      jax.jit(_step(task)), variables, task.frozen, _batch(built, batch_size))
  evaluations = -(-steps // max(duration.steps(train.evaluate_every), 1))
  # A forward pass is a third of a training step, and less of one that has a teacher.
  evaluated = (sizes['validation'] * evaluations + 2 * sizes['test']) / batch_size / 3
  resident = (sizes['train'] + sizes['validation'] + sizes['test']) * _image_bytes(built)
  memory = (3 * _bytes(variables['params']) + _bytes(task.frozen) + resident
            + _activations(program))
  return _Phase(name, phases.count(variables['params']),
                (flops or 0) * (steps * parallel.num_devices() + evaluated), memory, runs)


def _step(task: Task):
  """(variables, frozen, batch) to the gradient of the task, as one device computes it."""
  def step(variables, frozen, batch):
    collections = {name: tree for name, tree in variables.items() if name != 'params'}

    def on_device(batch):
      def loss(params):
        keyed = {**batch, 'key': jax.random.key(0)}
        keyed['taught'] = task.teach(frozen, keyed)
        return task.loss(params, collections, frozen, keyed, jax.random.key(0))[0]
      return jax.grad(loss)(variables['params'])

    return jax.vmap(on_device, axis_name=parallel.AXIS)(jax.tree.map(lambda x: x[None], batch))

  return step


def _batch(built: Modules, size: int) -> dict[str, jax.ShapeDtypeStruct]:
  shapes = {'image': ((size, *built.spec.image_shape), jnp.float32), 'label': ((size,), jnp.int32),
            'index': ((size,), jnp.int32), 'epoch': ((), jnp.float32)}
  return {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}


def _activations(program: jax.stages.Traced) -> int:
  """Bytes of the results of convolutions and products, which the backward pass keeps."""
  return sum(output.aval.size * output.aval.dtype.itemsize for equation in program.jaxpr.eqns
             for output in equation.outvars
             if equation.primitive.name in ('conv_general_dilated', 'dot_general')) // 3


def _speed(pair: grid.Pair, built: Modules) -> float:
  """FLOPs a second, over all devices, at which the student learns from labels."""
  task = tasks.teacher_task(built.student)
  variables = modules.initialise(built.student, jax.random.key(0), built.spec.image_shape)
  size = max(pair.config.student.train.global_batch_size // parallel.num_devices(), 1)
  batch = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), _batch(built, size))
  step = jax.jit(_step(task))
  jax.block_until_ready(step(variables, {}, batch))
  begun = time.perf_counter()
  for _ in range(_TIMED_STEPS):
    jax.block_until_ready(step(variables, {}, batch))
  seconds = (time.perf_counter() - begun) / _TIMED_STEPS
  return (cost.flops(step, variables, {}, batch) or 1) * parallel.num_devices() / seconds


def _image_bytes(built: Modules) -> int:
  height, width, channels = built.spec.image_shape
  return height * width * channels


def _bytes(tree: Any) -> int:
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _duration(seconds: float) -> str:
  for unit, size in (('days', 86400), ('hours', 3600), ('minutes', 60)):
    if seconds >= size:
      return f'{seconds / size:.1f} {unit}'
  return f'{seconds:.0f} seconds'
