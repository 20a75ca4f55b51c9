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
from kdih.training.task import LiveOutputs, Task

_TIMED_STEPS = 3


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
  memory = (3 * _bytes(variables['params']) * together + _bytes(task.frozen) + _resident(setting)
            + _bytes(task.table.resident) + activations)
  return Phase(name, cost.count_parameters(variables['params']) * together,
               flops * steps * devices + predict * evaluated * together, memory, runs)


def _making_cost(
    setting: Setting, name: str, rows: Callable, frozen: Any, views: int, table: LiveOutputs,
    notes: Sequence[str],
) -> Phase:
  """The cost of making tables of what teachers say.

  Args:
    setting: where.
    name: of the phase.
    rows: (frozen, images) to rows [batch, width] of each table.
    frozen: shapes of the variables that it reads.
    views: how many are seen, of all images.
    table: what then lies on a device, of all tables.
    notes: see `Phase`.
  """
  block = -(-setting.config.data.eval_global_batch_size // devices_lib.num_devices())
  flops, program = cost.analyse(jax.jit(rows), frozen, _images(setting, block))
  memory = (_bytes(frozen) + _resident(setting) + _bytes(table.resident)
            + max(_products(program), default=0))
  return Phase(name, 0, (flops or 0) / block * views, memory, 1, notes)


def _step_cost(task: Task, variables: Any, batch: Any, together: int) -> tuple[int, int]:
  """FLOPs of a device's step, and bytes of its activations."""
  def analysed(learners: int) -> tuple[int, int]:
    flops, program = cost.analyse(
        jax.jit(_step(task, learners)), variables, task.frozen, batch)
    return flops or 0, _activations(program)

  flops, activations = analysed(1)
  if together == 1:
    return flops, activations
  more_flops, more_activations = (two - one for one, two in zip(
      (flops, activations), analysed(2), strict=True))
  return flops + (together - 1) * more_flops, activations + (together - 1) * more_activations


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
  heard = {'heard': ((size, heard_width), jnp.float32)} if heard_width else {}
  shapes = {'label': ((size,), jnp.int32), 'index': ((size,), jnp.int32),
            'epoch': ((), jnp.float32), **heard}
  return {'image': _images(setting, size),
          **{name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}}


def _images(setting: Setting, size: int) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct((size, *setting.networks.spec.image_shape), jnp.float32)


def _activations(program: jax.stages.Traced) -> int:
  """Bytes of the results of convolutions and products, which the backward pass keeps."""
  return sum(_products(program)) // 3


def _products(program: jax.stages.Traced) -> list[int]:
  """Bytes of each result of a convolution or product."""
  return [output.aval.size * output.aval.dtype.itemsize for equation in program.jaxpr.eqns
          for output in equation.outvars
          if equation.primitive.name in ('conv_general_dilated', 'dot_general')]


def _resident(setting: Setting) -> int:
  """Bytes of the images of all splits."""
  height, width, channels = setting.networks.spec.image_shape
  return sum(setting.sizes.values()) * height * width * channels


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
  begun = time.perf_counter()
  for _ in range(_TIMED_STEPS):
    jax.block_until_ready(step(variables, {}, batch))
  seconds = (time.perf_counter() - begun) / _TIMED_STEPS
  return (cost.flops(step, variables, {}, batch) or 1) * devices_lib.num_devices() / seconds


_Runs = Sequence[tuple[plan_lib.Run, ...]]
_Hears = tuple[str, str, str]  # A teacher, what it teaches with, and the name of the hearing.


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
  lines = [f'data: {built[0].spec.name}, images {built[0].spec.image_shape}, '
           f'{built[0].spec.num_classes} classes']
  if not sizes:
    shapes = (line for pair, one in zip(pairs, built, strict=True) for line in _title(pair, one))
    return '\n'.join([*lines, *shapes, '', 'how long it takes is not known before '
                      f'{built[0].spec.name} is prepared; nothing was trained or written'])
  speed = _measured_speed(Setting(pairs[0].config, built[0], sizes))
  lines.append(f'speed: {speed / 1e9:,.1f} GFLOP/s on {devices_lib.num_devices()} x '
               f'{jax.devices()[0].device_kind}')
  total = 0.0
  for pair, one, planned in zip(pairs, built, plan(pairs, built, runs, sizes), strict=True):
    lines += _title(pair, one)
    for phase in planned:
      lines += _line(phase, phase.flops / speed)
      total += phase.flops / speed * phase.runs
  return '\n'.join([*lines, '', f'in all: {_duration(total)}, and what compiling takes; nothing was'
                    ' trained or written'])


def _title(pair: plan_lib.Pair, built: Networks) -> Iterator[str]:
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


def _line(phase: Phase, seconds: float) -> Iterator[str]:
  yield (f'  {phase.name:28}{phase.parameters:>14,} parameters {phase.flops:9.2e} FLOPs '
         f'{phase.memory / 2**20:9,.0f} MiB {_duration(seconds):>9} x {phase.runs}')
  yield from (f'    {note}' for note in phase.notes)


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
  settings = {(pair.teacher, pair.student): Setting(pair.config, one, sizes)
              for pair, one in zip(pairs, built, strict=True)}
  taught, heard = set[tuple[str, str]](), set[_Hears]()
  planned = []
  for (teacher, student), setting in settings.items():
    found = list(_teaching(setting, teacher, taught))
    if names := _unheard(setting, teacher, heard):
      found.append(_pass(setting, names))
    for name in setting.networks.methods:
      groups = [group for group in runs if group[0].method == name
                and (group[0].pair.teacher, group[0].pair.student) == (teacher, student)]
      if groups:  # Else it is trained together with another.
        found += _student_phases(setting, name, groups)
    planned.append(found)
  return planned


def _unheard(setting: Setting, teacher: str, heard: set[_Hears]) -> tuple[str, ...]:
  """Methods whose tables are to be made, one for each that is not among those `heard`; noted there.
  """
  wanted = {_hears(setting, name, teacher): name for name in reversed(setting.networks.methods)
            if cache_plan.serves(setting.config, setting.networks, name)}
  names = [name for hears, name in wanted.items() if hears not in heard]
  heard.update(wanted)
  return tuple(reversed(names))


def _hears(setting: Setting, name: str, teacher: str) -> _Hears:
  built = setting.networks
  return teacher, built.methods[name].taught_by, cache_plan.hearing(built, name).name


def _teaching(setting: Setting, name: str, taught: set[tuple[str, str]]) -> Iterator[Phase]:
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
  built, config, names = setting.networks, setting.config, tuple(setting.networks.taps)
  prepared, cached = _prepared(setting, names), None
  if config.compute.cache_taps:
    module, variables = prepared
    cached = _table(setting, cache_plan.taps_width(built)), built.taps
    yield _making(setting, 'cache taps', cache_plan.tap_rows(built, module), {'teacher': variables},
                  {cache_plan.taps_kind(built): cached[0].width})
  teacher = taps.abstract_variables(built.teacher, built.spec.image_shape)
  task = heads_task(built.teacher, built.heads, teacher, names, prepared, cached)
  yield _training(setting, 'heads', task, networks.abstract_heads(built),
                  config.heads.train, 1)


def _prepared(setting: Setting, names: Sequence[str]) -> tuple[nn.Module, Any]:
  """The teacher as it says quickly what is read at the taps `names`; its numbers are blank."""
  compute, shape = setting.config.compute, setting.networks.spec.image_shape
  teacher = setting.networks.teacher
  blank = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype),
                       taps.abstract_variables(teacher, shape))
  return frozen_teacher.prepare(
      teacher, blank, names, shape, fold_batch_norm=compute.fold_batch_norm,
      dtype=compute.teacher_dtype)


def _pass(setting: Setting, names: tuple[str, ...]) -> Phase:
  """The tables that these methods hear from, made in one."""
  built = setting.networks
  cohort_first = max(names, key=lambda name: built.methods[name].taught_by == 'cohort')
  module, frozen = _teacher(setting, cohort_first)
  widths = {cache_plan.hearing(built, name).name: built.heard_widths[name] for name in names}
  return _making(setting, f'cache {", ".join(names)}', cache_plan.rows(built, names, module),
                 frozen, widths)


def _making(
    setting: Setting, name: str, rows: Any, frozen: Any, widths: dict[str, int]
) -> Phase:
  """Tables of these kinds and widths."""
  views, place = (setting.sizes['train'], _num_slots(setting.config)), (
      setting.config.compute.cache_place)
  notes = [build.described((*views, width), place, kind) for kind, width in widths.items()]
  table = _table(setting, sum(widths.values()))
  return _making_cost(setting, name, rows, frozen, math.prod(views), table, notes)


def _table(setting: Setting, width: int) -> LiveOutputs:
  """A table, with the shapes of what lies on one device."""
  table, images = LiveOutputs(width), setting.sizes['train']
  if setting.config.compute.cache_place == 'device':
    share = -(-images // devices_lib.num_devices()), _num_slots(setting.config), width
    table.resident = {'heard': jax.ShapeDtypeStruct(share, build.DTYPE),
                      'heard_images': jax.ShapeDtypeStruct((images,), jnp.int32)}
  return table


def _num_slots(config: ml_collections.ConfigDict) -> int:
  return augment.of_config(config, choices.fixed_views(config.compute.cache)).num_slots


def _student_phases(setting: Setting, name: str, groups: _Runs) -> Iterator[Phase]:
  """Assistants, what is prepared, and the student; as `kdih.phases.student` trains them."""
  built, config = setting.networks, setting.config
  method, train = built.methods[name], config.student.train
  # Chains are not trained together.
  together, runs = ((1, sum(map(len, groups))) if method.assistants else
                    (len(groups[0]), len(groups)))
  for model in method.assistants:
    module = built.assistants[model]
    assistant = dataclasses.replace(built, student=module, student_taps={})
    yield _training(setting, f'  {name}: {model}',
                    *_student(dataclasses.replace(setting, networks=assistant), name), train,
                    runs)
    built = dataclasses.replace(built, teacher=module, teacher_taps={})
    setting = dataclasses.replace(setting, networks=built)
  several = f', {together} together' if together > 1 else ''
  if method.prepares:
    yield _training(setting, f'  {name}: prepare{several}',
                    *_student(setting, name, preparing=True), config.student.prepare, runs,
                    together)
  yield _training(setting, f'student {name}{several}', *_student(setting, name), train, runs,
                  together)


def _student(setting: Setting, name: str, *, preparing: bool = False) -> tuple[Task, Any]:
  built, shape = setting.networks, setting.networks.spec.image_shape
  method, table = built.methods[name], None
  frozen: dict[str, Any]
  if cache_plan.serves(setting.config, built, name) and not preparing:
    table = _table(setting, built.heard_widths[name])
    module, frozen = built.teacher, {'weights': _weights(built, name)}
  else:
    module, frozen = _teacher(setting, name)
  num_examples = max(setting.sizes['train'] + setting.sizes['validation'], 1)
  if method.needs_train_labels:
    frozen['train_labels'] = jax.ShapeDtypeStruct((num_examples,), jnp.int32)
  teach = make_teach('labels' if table else method.taught_by, module,
                     tuple(built.teacher_taps), built.heads, tuple(built.taps))
  task = student_task(built.student, tuple(built.student_taps), method, teach, frozen,
                      preparing=preparing, table=table)
  return task, state.join(student=taps.abstract_variables(built.student, shape),
                          method=networks.abstract_method(built, name, num_examples))


def _teacher(setting: Setting, name: str) -> tuple[nn.Module, dict[str, Any]]:
  """Who teaches by the method `name`: a module, and what is frozen."""
  built = setting.networks
  taught_by = built.methods[name].taught_by
  if taught_by == 'labels':
    return built.teacher, {}
  if taught_by == 'teacher':
    module, variables = _prepared(setting, tuple(built.teacher_taps))
    return module, {'teacher': variables}
  module, variables = _prepared(setting, (*built.teacher_taps, *built.taps))
  return module, {'teacher': variables, 'heads': networks.abstract_heads(built),
                  'weights': _weights(built, name)}


def _weights(built: Networks, name: str) -> dict[str, Any]:
  """Shapes of what the members of the cohort are weighted by, where it teaches."""
  if built.methods[name].taught_by != 'cohort':
    return {}
  return {rule: jax.ShapeDtypeStruct((len(built.taps) + 1,), jnp.float32)
          for rule in member_weights.RULES}
