"""One DIH step on blank images, of any size: as shapes to analyse, or as arrays to time.

Nowhere else does this package touch the training code.
"""
import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kdih import methods
from kdih.cohort.head_modules import Heads
from kdih.cohort.members import make_teach
from kdih.config import fields, method_presets
from kdih.data import augment
from kdih.distillation.method import Context
from kdih.models import registry, taps as taps_lib
from kdih.phases.student import student_task
from kdih.runtime import devices as devices_lib
from kdih.training import optimizer, state, steps_per_call
from kdih.training.step import make_train_step
from kdih.training.task import Learning


@dataclasses.dataclass(frozen=True)
class Setup:
  """What a step is made of.

  Attributes:
    teacher: name of its model.
    student: likewise.
    batch_size: of all devices that take part.
    image_size: height and width in pixels.
    num_classes: number of classes.
    taps: those with a head; None for every tap that the teacher sows.
    kind: of the heads, 'flatten' or 'gap'.
    dtype: what both models compute in.
    padding: of the augmentation.
    teacher_fields: further fields of its module.
    student_fields: likewise.
    remat: as `config.compute.remat`.
  """

  teacher: str
  student: str
  batch_size: int
  image_size: int = 32
  num_classes: int = 100
  taps: tuple[str, ...] | None = None
  kind: str = 'flatten'
  dtype: str = 'float32'
  padding: int = 4
  teacher_fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  student_fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  remat: bool = False

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """Height, width, channels."""
    return self.image_size, self.image_size, 3

  def model(self, role: str) -> nn.Module:
    """The module of the 'teacher' or the 'student'."""
    return registry.create(
        getattr(self, role), self.num_classes, dtype=jnp.dtype(self.dtype),
        axis_name=devices_lib.AXIS, **getattr(self, f'{role}_fields'))

  def features(self) -> taps_lib.Shapes:
    """{tap: shape of one example's feature} of the taps with a head."""
    if self.taps == ():
      return {}
    return taps_lib.choose_taps(self.model('teacher'), self.image_shape, self.taps or ())


@dataclasses.dataclass(frozen=True)
class Problem:
  """A step, and the shapes of its arguments.

  Attributes:
    step: (states, frozen, resident, feeds) to (states, metrics), over all devices.
    state: of the training.
    frozen: {'teacher', 'heads'}: variables.
    feed: images uint8, labels and indices of one update, [1, batch, ...].
  """

  step: Callable
  state: Any
  frozen: Any
  feed: dict[str, jax.ShapeDtypeStruct]


def build(setup: Setup) -> Problem:
  """The step that trains the student by `dih`, without heads by `kd`; nothing is computed."""
  teacher, student, features = setup.model('teacher'), setup.model('student'), setup.features()
  heads = Heads(setup.num_classes, setup.kind)
  frozen = {'teacher': taps_lib.abstract_variables(teacher, setup.image_shape)}
  if features:
    frozen['heads'] = abstract_heads(heads, features)
  name = 'dih' if features else 'kd'
  method = methods.create(name, method_presets.methods('paper')[name],
                          Context(num_members=len(features) + 1, axis_name=devices_lib.AXIS))
  teach = make_teach(method.taught_by, teacher, (), heads, tuple(features))
  task = student_task(student, (), method, teach, frozen)
  train = fields.base().student.train
  tx = optimizer.make_optimizer(train, lambda step: 1e-3)
  step = make_train_step(
      learning=[Learning(task, tx)], gather=lambda resident, feed: feed,
      preprocess=augment.make_preprocess(mean=(0.5,), std=(0.5,), padding=setup.padding,
                                         padding_mode='zeros', flip=True),
      steps_per_epoch=1000.0, remat=setup.remat)
  variables = state.join(student=taps_lib.abstract_variables(student, setup.image_shape))
  feed = {
      'image': jax.ShapeDtypeStruct((1, setup.batch_size, *setup.image_shape), jnp.uint8),
      'label': jax.ShapeDtypeStruct((1, setup.batch_size), jnp.int32),
      'index': jax.ShapeDtypeStruct((1, setup.batch_size), jnp.int32),
  }
  return Problem(
      step, jax.eval_shape(lambda v: state.create(v, tx, 0), variables), frozen, feed)


def abstract_heads(heads: Heads, features: taps_lib.Shapes) -> dict[str, Any]:
  """Shapes of the variables of `heads` on such features."""
  inputs = {tap: jax.ShapeDtypeStruct((1, *shape), jnp.float32)
            for tap, shape in features.items()}
  return dict(jax.eval_shape(lambda x: heads.init(jax.random.key(0), x), inputs))


def stepper(problem: Problem) -> Callable[[], None]:
  """A call of the result does one step on all devices and waits for it."""
  kept = [devices_lib.replicate((_filled(problem.state),))]
  frozen = devices_lib.replicate(_filled(problem.frozen))
  blank = {name: np.zeros(x.shape[1:], x.dtype) for name, x in problem.feed.items()}
  feed, = steps_per_call.stacked(iter([devices_lib.shard(blank)]), [1])

  def call() -> None:
    kept[0], _ = problem.step(kept[0], frozen, {}, feed)
    jax.block_until_ready(kept[0])

  return call


def _filled(tree: Any) -> Any:
  # Weights are these few numbers, over and over: quick to make, and none of them is 0.
  few = np.abs(np.random.default_rng(0).normal(0, 0.02, 4093)) + 1e-3

  def fill(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    if leaf.dtype == jnp.float32 and leaf.shape:
      return np.resize(few.astype(np.float32), leaf.shape)
    return np.ones(leaf.shape, leaf.dtype)

  return jax.tree.map(fill, tree)


def compiled_for(problem: Problem, devices: list) -> jax.stages.Compiled:
  """The step, compiled for `devices`, which need not be at hand.

  The batch is split over them, and all else is the same on each, as `devices.pmap_step` has it.
  """
  mesh = Mesh(np.array(devices), (devices_lib.AXIS,))
  same, split = PartitionSpec(), PartitionSpec(None, devices_lib.AXIS)
  step = jax.shard_map(inspect.unwrap(problem.step), mesh=mesh, in_specs=(same, same, same, split),
                       out_specs=same, check_vma=False)

  def placed(tree: Any, spec: PartitionSpec) -> Any:
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

  return jax.jit(step, donate_argnums=0).lower(
      placed((problem.state,), same), placed(problem.frozen, same), {},
      placed(problem.feed, split)).compile()
