"""What one phase would cost: FLOPs and memory of its traced program, with nothing computed."""
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from kdih import cost, modules, optimizer, parallel, phases, tasks
from kdih.heard import NoTable
from kdih.modules import Modules
from kdih.tasks import Task

_TIMED_STEPS = 3


@dataclasses.dataclass(frozen=True)
class Setting:
  """What the phases of a pair share.

  Attributes:
    config: of the pair.
    modules: built from it.
    sizes: images to train with, to validate with and to test with; see `kdih.split_sizes`.
  """

  config: ml_collections.ConfigDict
  modules: Modules
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


def training(
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
  devices, sizes = parallel.num_devices(), setting.sizes
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
  return Phase(name, phases.count(variables['params']) * together,
               flops * steps * devices + predict * evaluated * together, memory, runs)


def making(
    setting: Setting, name: str, rows: Callable, frozen: Any, views: int, table: NoTable,
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
  block = -(-setting.config.data.eval_global_batch_size // parallel.num_devices())
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

    return jax.vmap(on_device, axis_name=parallel.AXIS)(jax.tree.map(lambda x: x[None], batch))

  return step


def _batch(setting: Setting, size: int, heard_width: int) -> dict[str, jax.ShapeDtypeStruct]:
  heard = {'heard': ((size, heard_width), jnp.float32)} if heard_width else {}
  shapes = {'label': ((size,), jnp.int32), 'index': ((size,), jnp.int32),
            'epoch': ((), jnp.float32), **heard}
  return {'image': _images(setting, size),
          **{name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}}


def _images(setting: Setting, size: int) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct((size, *setting.modules.spec.image_shape), jnp.float32)


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
  height, width, channels = setting.modules.spec.image_shape
  return sum(setting.sizes.values()) * height * width * channels


def _bytes(tree: Any) -> int:
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def speed(setting: Setting) -> float:
  """FLOPs a second, over all devices, at which the student learns from labels."""
  student = setting.modules.student
  task = tasks.teacher_task(student)
  variables = modules.initialise(student, jax.random.key(0), setting.modules.spec.image_shape)
  size = max(setting.config.student.train.global_batch_size // parallel.num_devices(), 1)
  batch = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), _batch(setting, size, 0))
  step = jax.jit(_step(task, 1))
  jax.block_until_ready(step(variables, {}, batch))
  begun = time.perf_counter()
  for _ in range(_TIMED_STEPS):
    jax.block_until_ready(step(variables, {}, batch))
  seconds = (time.perf_counter() - begun) / _TIMED_STEPS
  return (cost.flops(step, variables, {}, batch) or 1) * parallel.num_devices() / seconds
