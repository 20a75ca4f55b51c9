"""What a sweep would cost: shapes, parameters, FLOPs, memory and time, with nothing trained."""
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from kdih.cohort import frozen_teacher, member_weights
from kdih.cohort.cache import build
from kdih.cohort.members import make_teach
from kdih.config import choices
from kdih.data import augment
from kdih.models import cost, taps
from kdih.phases import cache_plan, networks
from kdih.phases.heads import heads_task
from kdih.phases.networks import Networks
from kdih.phases.student import student_task
from kdih.phases.teacher import teacher_task
from kdih.runtime import devices as devices_lib
from kdih.sweep import plan as plan_lib
from kdih.training import optimizer, state
from kdih.training.task import Task, TeacherOutputs

_Runs = Sequence[tuple[plan_lib.Run, ...]]
_Hears = tuple[str, str, str]  # A teacher, what it teaches with, and the name of the hearing.


@dataclasses.dataclass(frozen=True)
class Setting:
  """What the phases of a pair share.

  Attributes:
    config: of the pair.
    networks: built from it.
    sizes: images to train with, to validate with and to test with; see `kdih.data.sizes`.
  """

  config: ml_collections.ConfigDict
  networks: Networks
  sizes: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Phase:
  """What a phase needs.

  Attributes:
    name: what it is called.
    parameters: that it trains.
    flops: from its beginning to its end, over all devices.
    memory: bytes on one device.
    runs: how often there is such a phase.
    notes: what else there is to know of it, a line each.
  """

  name: str
  parameters: int
  flops: float
  memory: int
  runs: int
  notes: Sequence[str] = ()


def describe(
    pairs: Sequence[plan_lib.Pair], built: Sequence[Networks], runs: _Runs, sizes: dict[str, int]
) -> str:
  """Tables of what each pair consists of, and what each of its phases would cost.

  FLOPs are those of the traced programs, a multiply-add counted as two. Times follow from them
  and from the speed at which this machine trains the first student from labels, measured over a
  few steps on blank images: the order of magnitude, no more. Memory is that of variables,
  gradients, optimizer, resident data, the activations that the backward pass needs, and the table
  of what teachers say that the phase makes or learns from.

  Args:
    pairs: to be run.
    built: their networks.
    runs: all of them, by what is trained together.
    sizes: of the data; see `kdih.data.sizes`.
  """
  spec = built[0].spec
  lines = [f'data: {spec.name}, images {spec.image_shape}, {spec.num_classes} classes']
  if not sizes:
    for pair, one in zip(pairs, built, strict=True):
      lines += _models(pair, one)
    return '\n'.join([*lines, '', f'how long it takes is not known before {spec.name} is prepared; '
                      'nothing was trained or written'])
  speed = _measured_speed(Setting(pairs[0].config, built[0], sizes))
  lines.append(f'speed: {speed / 1e9:,.1f} GFLOP/s on {devices_lib.num_devices()} x '
               f'{jax.devices()[0].device_kind}')
  total = 0.0
  for pair, one, phases in zip(pairs, built, plan(pairs, built, runs, sizes), strict=True):
    lines += _models(pair, one)
    for phase in phases:
      seconds = phase.flops / speed
      total += seconds * phase.runs
      lines.append(
          f'  {phase.name:28}{phase.parameters:>14,} parameters {phase.flops:9.2e} FLOPs '
          f'{phase.memory / 2**20:9,.0f} MiB {_duration(seconds):>9} x {phase.runs}')
      lines += [f'    {note}' for note in phase.notes]
  return '\n'.join([*lines, '', f'in all: {_duration(total)}, and what compiling takes; nothing was'
                    ' trained or written'])


def _models(pair: plan_lib.Pair, built: Networks) -> Iterator[str]:
  """The lines of what a pair consists of."""
  yield ''
  yield f'{pair.teacher} -> {pair.student}'
  for role in ('teacher', 'student'):
    model, shape = getattr(built, role), built.spec.image_shape
    variables = taps.abstract_variables(model, shape)
    flops = cost.forward_flops(model, variables, shape) or 0
    count = cost.count_parameters(variables['params'])
    yield f'  {role:8}{getattr(pair, role)}: {count:,} parameters, {flops:.2e} FLOPs an image'
  for tap, feature in built.taps.items():
    yield f'  head    {tap} on {feature}'


def _duration(seconds: float) -> str:
  for unit, size in (('days', 86400), ('hours', 3600), ('minutes', 60)):
    if seconds >= size:
      return f'{seconds / size:.1f} {unit}'
  return f'{seconds:.0f} seconds'


def plan(
    pairs: Sequence[plan_lib.Pair], built: Sequence[Networks], runs: _Runs, sizes: dict[str, int]
) -> list[list[Phase]]:
  """The phases of each pair: what is shared, such as a teacher, with the first that asks for it.

  The arguments are those of `describe`.
  """
  taught = set[tuple[str, str]]()  # A teacher, and 'teacher' or 'heads'.
  heard = set[_Hears]()
  planned = []
  for pair, one in zip(pairs, built, strict=True):
    setting = Setting(pair.config, one, sizes)
    phases = list(_teaching_phases(setting, pair.teacher, taught))
    if names := _unheard(setting, pair.teacher, heard):
      phases.append(_cache_phase(setting, names))
    for name in one.methods:
      groups = [group for group in runs if group[0].method == name
                and (group[0].pair.teacher, group[0].pair.student) == (pair.teacher, pair.student)]
      if groups:  # Else it is trained together with another.
        phases += _student_phases(setting, name, groups)
    planned.append(phases)
  return planned


def _unheard(setting: Setting, teacher: str, heard: set[_Hears]) -> tuple[str, ...]:
  """Methods whose tables are to be made, one for each that is not among those `heard`; noted there.
  """
  built = setting.networks
  wanted: dict[_Hears, str] = {}
  for name in reversed(built.methods):
    if cache_plan.serves(setting.config, built, name):
      hears = teacher, built.methods[name].taught_by, cache_plan.hearing(built, name).name
      wanted[hears] = name
  names = [name for hears, name in wanted.items() if hears not in heard]
  heard.update(wanted)
  return tuple(reversed(names))


def _teaching_phases(setting: Setting, name: str, taught: set[tuple[str, str]]) -> Iterator[Phase]:
  """Teacher and heads, unless they exist or are among those `taught`, where they are noted."""
  built, config = setting.networks, setting.config
  taught_by = {method.taught_by for method in built.methods.values()}
  teacher, heads = (name, 'teacher'), (name, 'heads')
  if not (teacher in taught or config.teacher.variables or taught_by == {'labels'}):
    taught.add(teacher)
    variables = taps.abstract_variables(built.teacher, built.spec.image_shape)
    yield _training(setting, 'teacher', teacher_task(built.teacher), variables,
                    config.teacher.train, 1)
  if not (heads in taught or config.heads.variables) and 'cohort' in taught_by:
    taught.add(heads)
    yield from _heads_phases(setting)


def _heads_phases(setting: Setting) -> Iterator[Phase]:
  """The heads, and before them the table of features that they learn from, if there is one."""
  built, config = setting.networks, setting.config
  names = tuple(built.taps)
  cached = None
  prepared = _prepared_teacher(setting, names)
  if config.compute.cache_taps:
    module, variables = prepared
    table = _TableShapes(setting, cache_plan.taps_width(built))
    cached = table, built.taps
    yield _making(setting, 'cache taps', cache_plan.tap_rows(built, module), {'teacher': variables},
                  {cache_plan.taps_kind(built): table.width})
  teacher = taps.abstract_variables(built.teacher, built.spec.image_shape)
  task = heads_task(built.teacher, built.heads, teacher, names, prepared, cached)
  yield _training(setting, 'heads', task, networks.abstract_heads(built), config.heads.train, 1)


def _cache_phase(setting: Setting, names: tuple[str, ...]) -> Phase:
  """The tables that these methods hear from, made in one."""
  built = setting.networks
  cohort_first = max(names, key=lambda name: built.methods[name].taught_by == 'cohort')
  module, frozen = _teacher_of(setting, cohort_first)
  widths = {cache_plan.hearing(built, name).name: built.heard_widths[name] for name in names}
  return _making(setting, f'cache {", ".join(names)}', cache_plan.rows(built, names, module),
                 frozen, widths)


def _student_phases(setting: Setting, name: str, groups: _Runs) -> Iterator[Phase]:
  """Assistants, what is prepared, and the student; as `kdih.phases.student` trains them."""
  built, config = setting.networks, setting.config
  method, train = built.methods[name], config.student.train
  if method.assistants:  # Chains are not trained together.
    together, runs = 1, sum(map(len, groups))
  else:
    together, runs = len(groups[0]), len(groups)
  for model in method.assistants:
    module = built.assistants[model]
    assistant = dataclasses.replace(built, student=module, student_taps={})
    task, variables = _student_task(dataclasses.replace(setting, networks=assistant), name)
    yield _training(setting, f'  {name}: {model}', task, variables, train, runs)
    built = dataclasses.replace(built, teacher=module, teacher_taps={})
    setting = dataclasses.replace(setting, networks=built)
  several = f', {together} together' if together > 1 else ''
  if method.prepares:
    task, variables = _student_task(setting, name, preparing=True)
    yield _training(setting, f'  {name}: prepare{several}', task, variables,
                    config.student.prepare, runs, together)
  task, variables = _student_task(setting, name)
  yield _training(setting, f'student {name}{several}', task, variables, train, runs, together)


def _student_task(setting: Setting, name: str, *, preparing: bool = False) -> tuple[Task, Any]:
  """What a student learns by the method `name`, and the shapes of its variables."""
  built, shape = setting.networks, setting.networks.spec.image_shape
  method, table = built.methods[name], None
  frozen: dict[str, Any]
  if cache_plan.serves(setting.config, built, name) and not preparing:
    table = _TableShapes(setting, built.heard_widths[name])
    module, frozen = built.teacher, {'weights': _member_weights(built, name)}
  else:
    module, frozen = _teacher_of(setting, name)
  num_examples = max(setting.sizes['train'] + setting.sizes['validation'], 1)
  if method.needs_train_labels:
    frozen['train_labels'] = jax.ShapeDtypeStruct((num_examples,), jnp.int32)
  teach = make_teach('labels' if table else method.taught_by, module,
                     tuple(built.teacher_taps), built.heads, tuple(built.taps))
  task = student_task(built.student, tuple(built.student_taps), method, teach, frozen,
                      preparing=preparing, table=table)
  return task, state.join(student=taps.abstract_variables(built.student, shape),
                          method=networks.abstract_method(built, name, num_examples))


def _teacher_of(setting: Setting, name: str) -> tuple[nn.Module, dict[str, Any]]:
  """Who teaches by the method `name`: a module, and what is frozen."""
  built = setting.networks
  taught_by = built.methods[name].taught_by
  if taught_by == 'labels':
    return built.teacher, {}
  if taught_by == 'teacher':
    module, variables = _prepared_teacher(setting, tuple(built.teacher_taps))
    return module, {'teacher': variables}
  module, variables = _prepared_teacher(setting, (*built.teacher_taps, *built.taps))
  return module, {'teacher': variables, 'heads': networks.abstract_heads(built),
                  'weights': _member_weights(built, name)}


def _prepared_teacher(setting: Setting, names: Sequence[str]) -> tuple[nn.Module, Any]:
  """The teacher as it says quickly what is read at the taps `names`; its numbers are blank."""
  compute, shape = setting.config.compute, setting.networks.spec.image_shape
  teacher = setting.networks.teacher
  blank = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype),
                       taps.abstract_variables(teacher, shape))
  return frozen_teacher.prepare(
      teacher, blank, names, shape, fold_batch_norm=compute.fold_batch_norm,
      dtype=compute.teacher_dtype)


def _member_weights(built: Networks, name: str) -> dict[str, Any]:
  """Shapes of what the members of the cohort are weighted by, where it teaches."""
  if built.methods[name].taught_by != 'cohort':
    return {}
  return {rule: jax.ShapeDtypeStruct((len(built.taps) + 1,), jnp.float32)
          for rule in member_weights.RULES}


class _TableShapes(TeacherOutputs):
  """A table of so many numbers in a row, with the shapes of what lies on one device."""

  def __init__(self, setting: Setting, width: int):
    self.width, self.resident, self.axes = width, {}, {}
    images = setting.sizes['train']
    if setting.config.compute.cache_place == 'device':
      share = -(-images // devices_lib.num_devices()), _num_slots(setting.config), width
      self.resident = {'heard': jax.ShapeDtypeStruct(share, build.DTYPE),
                       'heard_images': jax.ShapeDtypeStruct((images,), jnp.int32)}


def _num_slots(config: ml_collections.ConfigDict) -> int:
  return augment.of_config(config, choices.fixed_views(config.compute.cache)).num_slots


def _training(
    setting: Setting, name: str, task: Task, variables: Any, train: ml_collections.ConfigDict,
    runs: int, together: int = 1,
) -> Phase:
  """The cost of training `together` learners by `task` as one program, which asks teachers once.

  Args:
    setting: where.
    name: of the phase.
    task: of each learner; its frozen variables and its table may be shapes.
    variables: shapes of a learner's.
    train: how it trains.
    runs: how often.
    together: learners.
  """
  devices, sizes = devices_lib.num_devices(), setting.sizes
  batch_size = max(train.global_batch_size // devices, 1)
  duration = optimizer.Duration(train.unit, max(sizes['train'], 1) / train.global_batch_size)
  steps = duration.steps(train.length)
  batch = _batch(setting, batch_size, task.table.width)
  flops, activations = _step_cost(task, variables, batch, together)
  evaluations = -(-steps // max(duration.steps(train.evaluate_every), 1))
  evaluated = sizes['validation'] * evaluations + 2 * sizes['test']
  predict = cost.flops(jax.jit(task.predict), variables, task.frozen, _images(setting, 1)) or 0
  memory = (3 * _bytes(variables['params']) * together + _bytes(task.frozen)
            + _image_bytes(setting) + _bytes(task.table.resident) + activations)
  return Phase(name, cost.count_parameters(variables['params']) * together,
               flops * steps * devices + predict * evaluated * together, memory, runs)


def _making(
    setting: Setting, name: str, rows: Callable, frozen: Any, widths: dict[str, int]
) -> Phase:
  """The cost of making tables of what teachers say.

  Args:
    setting: where.
    name: of the phase.
    rows: (frozen, images) to rows [batch, width] of each table.
    frozen: shapes of the variables that it reads.
    widths: of the tables, by their kind.
  """
  config = setting.config
  views = setting.sizes['train'], _num_slots(config)
  table = _TableShapes(setting, sum(widths.values()))
  block = -(-config.data.eval_global_batch_size // devices_lib.num_devices())
  flops, program = cost.analyse(jax.jit(rows), frozen, _images(setting, block))
  memory = (_bytes(frozen) + _image_bytes(setting) + _bytes(table.resident)
            + max(_product_bytes(program), default=0))
  notes = [build.described((*views, width), config.compute.cache_place, kind)
           for kind, width in widths.items()]
  return Phase(name, 0, (flops or 0) / block * math.prod(views), memory, 1, notes)


def _step_cost(task: Task, variables: Any, batch: Any, together: int) -> tuple[int, int]:
  """FLOPs of a device's step, and bytes of its activations."""
  def analysed(learners: int) -> tuple[int, int]:
    flops, program = cost.analyse(
        jax.jit(_step(task, learners)), variables, task.frozen, batch)
    # Of the results of convolutions and products the backward pass keeps a third.
    return flops or 0, sum(_product_bytes(program)) // 3

  flops, activations = analysed(1)
  if together == 1:
    return flops, activations
  flops_of_two, activations_of_two = analysed(2)
  more = together - 1
  return (flops + more * (flops_of_two - flops),
          activations + more * (activations_of_two - activations))


def _step(task: Task, learners: int):
  """(variables, frozen, batch) to each learner's gradient, as one device computes it."""
  def step(variables, frozen, batch):
    collections = {name: tree for name, tree in variables.items() if name != 'params'}

    def on_device(batch):
      keyed = {**batch, 'key': jax.random.key(0)}
      keyed['taught'] = task.teach(frozen, keyed)

      def loss(params):
        return task.loss(params, collections, frozen, keyed, jax.random.key(0))[0]
      return [jax.grad(loss)(variables['params']) for _ in range(learners)]

    return jax.vmap(on_device, axis_name=devices_lib.AXIS)(jax.tree.map(lambda x: x[None], batch))

  return step


def _batch(setting: Setting, size: int, heard_width: int) -> dict[str, jax.ShapeDtypeStruct]:
  batch = {'image': _images(setting, size),
           'label': jax.ShapeDtypeStruct((size,), jnp.int32),
           'index': jax.ShapeDtypeStruct((size,), jnp.int32),
           'epoch': jax.ShapeDtypeStruct((), jnp.float32)}
  if heard_width:
    batch['heard'] = jax.ShapeDtypeStruct((size, heard_width), jnp.float32)
  return batch


def _images(setting: Setting, size: int) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct((size, *setting.networks.spec.image_shape), jnp.float32)


def _image_bytes(setting: Setting) -> int:
  """Bytes of the images of all splits."""
  return sum(setting.sizes.values()) * math.prod(setting.networks.spec.image_shape)


def _product_bytes(program: jax.stages.Traced) -> list[int]:
  """Bytes of each result of a convolution or product."""
  return [output.aval.size * output.aval.dtype.itemsize for equation in program.jaxpr.eqns
          for output in equation.outvars
          if equation.primitive.name in ('conv_general_dilated', 'dot_general')]


def _bytes(tree: Any) -> int:
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _measured_speed(setting: Setting) -> float:
  """FLOPs a second, over all devices, at which the student learns from labels."""
  student = setting.networks.student
  task = teacher_task(student)
  variables = networks.initialise(student, jax.random.key(0), setting.networks.spec.image_shape)
  size = max(setting.config.student.train.global_batch_size // devices_lib.num_devices(), 1)
  batch = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), _batch(setting, size, 0))
  step = jax.jit(_step(task, 1))
  jax.block_until_ready(step(variables, {}, batch))
  repeats = 3
  begun = time.perf_counter()
  for _ in range(repeats):
    jax.block_until_ready(step(variables, {}, batch))
  seconds = (time.perf_counter() - begun) / repeats
  return (cost.flops(step, variables, {}, batch) or 1) * devices_lib.num_devices() / seconds
