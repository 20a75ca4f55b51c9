"""One DIH step on blank images, of any size: as shapes to analyse, or as arrays to time.

Nowhere else does this package touch the training code.
"""
import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kdih.config import plain
from kdih.data.made import made_splits
from kdih.data.spec import DataSpec
from kdih.phases import networks, student as student_lib
from kdih.phases.problem import TrainingData
from kdih.runtime import devices as devices_lib
from kdih.training import state, steps_per_call


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

  @property
  def config(self) -> plain.Plain:
    """Returns the config of a run of it."""
    return plain.config({
        'teacher.name': self.teacher, 'teacher.kwargs': dict(self.teacher_fields),
        'student.name': self.student, 'student.kwargs': dict(self.student_fields),
        'student.methods': ('kd',) if self.taps == () else ('dih',),
        'student.train.global_batch_size': self.batch_size,
        'heads.kind': self.kind, 'heads.taps': self.taps or (), 'dtype': self.dtype,
        'data.padding': self.padding, 'data.validation_fraction': 0.0,
        'compute.remat': self.remat, 'compute.fold_batch_norm': False})

  def networks(self) -> networks.Networks:
    """Returns its networks."""
    return networks.build(self.config, DataSpec('made', self.image_shape, self.num_classes))


@dataclasses.dataclass(frozen=True)
class Step:
  """A step, and the shapes of its arguments.

  Attributes:
    step: (state, frozen, resident, feeds) to (state, metrics), over all devices.
    state: of the training.
    frozen: {'teacher', 'heads'}: variables.
    feed: images uint8, labels and indices of one update, [1, batch, ...].
  """

  step: Callable
  state: Any
  frozen: Any
  feed: dict[str, jax.ShapeDtypeStruct]


def build(setup: Setup) -> Step:
  """Returns the step that trains the student by `dih`, without heads by `kd`; computes nothing."""
  config, built = setup.config, setup.networks()
  frozen = {'teacher': built.teacher_variables}
  if setup.taps != ():
    frozen['heads'] = networks.abstract_heads(built)
  name, = built.methods
  teacher = dataclasses.replace(student_lib.teacher_of(config, built, frozen), taps=())
  variables = state.join(student=built.student_variables, method={})
  data = TrainingData(config, made_splits(built.spec, 1000, loader='streaming'))
  problem = student_lib.student_problem(config, built, data, variables, name, teacher)
  feed = {
      'image': jax.ShapeDtypeStruct((1, setup.batch_size, *setup.image_shape), jnp.uint8),
      'label': jax.ShapeDtypeStruct((1, setup.batch_size), jnp.int32),
      'index': jax.ShapeDtypeStruct((1, setup.batch_size), jnp.int32),
  }
  return Step(problem.compiled(), jax.eval_shape(lambda v: problem.state(v, 0), variables),
              problem.task.frozen, feed)


def head_variables(setup: Setup) -> dict[str, Any]:
  """Returns shapes of the variables of the heads."""
  return networks.abstract_heads(setup.networks())


def stepper(made: Step) -> Callable[[], None]:
  """A call of the result does one step on all devices and waits for it."""
  kept = [devices_lib.replicate(_filled(made.state))]
  frozen = devices_lib.replicate(_filled(made.frozen))
  blank = {name: np.zeros(x.shape[1:], x.dtype) for name, x in made.feed.items()}
  feed, = steps_per_call.stacked(iter([devices_lib.shard(blank)]), [1])

  def call() -> None:
    kept[0], _ = made.step(kept[0], frozen, {}, feed)
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


def compiled_for(made: Step, devices: list) -> jax.stages.Compiled:
  """The step, compiled for `devices`, which need not be at hand.

  The batch is split over them, and all else is the same on each, as `devices.pmap_step` has it.
  """
  mesh = Mesh(np.array(devices), (devices_lib.AXIS,))
  same, split = PartitionSpec(), PartitionSpec(None, devices_lib.AXIS)
  step = jax.shard_map(inspect.unwrap(made.step), mesh=mesh, in_specs=(same, same, same, split),
                       out_specs=same, check_vma=False)

  def placed(tree: Any, spec: PartitionSpec) -> Any:
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

  return jax.jit(step, donate_argnums=0).lower(
      placed(made.state, same), placed(made.frozen, same), {},
      placed(made.feed, split)).compile()
