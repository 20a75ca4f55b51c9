"""One DIH training step on blank images of any size, to be analysed as shapes or timed with arrays.

This is the only module of the study that uses kdih's training code.
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
  """The training of a student, of which one step is analysed or timed.

  Attributes:
    teacher: name of the teacher's model.
    student: name of the student's model.
    batch_size: number of images per step, over all devices.
    image_size: height and width in pixels.
    num_classes: number of classes.
    taps: the taps that have a head; None for all taps of the teacher, () for `kd` without heads.
    kind: kind of the heads, 'flatten' or 'gap'.
    dtype: data type in which both models compute.
    padding: pixels of padding for random crops.
    teacher_fields: further fields of the teacher's module.
    student_fields: further fields of the student's module.
    remat: `config.compute.remat`.
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
    """Returns height, width and channels."""
    return self.image_size, self.image_size, 3

  @property
  def config(self) -> plain.Plain:
    """Returns the config of a run with this training."""
    return plain.config({
        'teacher.name': self.teacher, 'teacher.kwargs': dict(self.teacher_fields),
        'student.name': self.student, 'student.kwargs': dict(self.student_fields),
        'student.methods': ('kd',) if self.taps == () else ('dih',),
        'student.train.global_batch_size': self.batch_size,
        'heads.kind': self.kind, 'heads.taps': self.taps or (), 'dtype': self.dtype,
        'data.padding': self.padding, 'data.validation_fraction': 0.0,
        'compute.remat': self.remat, 'compute.fold_batch_norm': False})

  def networks(self) -> networks.Networks:
    """Returns the teacher, the heads and the student, without variables."""
    return networks.build(self.config, DataSpec('made', self.image_shape, self.num_classes))


@dataclasses.dataclass(frozen=True)
class Step:
  """A training step, and the shapes of its arguments.

  Attributes:
    step: maps (state, frozen, resident, feeds) to (state, metrics), over all devices.
    state: the training state.
    frozen: {'teacher', 'heads'}, their variables.
    feed: images (uint8), labels and indices of one step, [1, batch, ...].
  """

  step: Callable
  state: Any
  frozen: Any
  feed: dict[str, jax.ShapeDtypeStruct]


def build(training: Training) -> Step:
  """Returns the step of `dih`, or of `kd` if there are no heads, without computing any array."""
  config, built = training.config, training.networks()
  frozen = {'teacher': built.teacher_variables}
  if training.taps != ():
    frozen['heads'] = networks.abstract_heads(built)
  name, = built.methods
  teacher = dataclasses.replace(student_lib.teacher_of(config, built, frozen), taps=())
  variables = state.join(student=built.student_variables, method={})
  data = TrainingData(config, made_splits(built.spec, 1000, loader='streaming'))
  problem = student_lib.student_problem(config, built, data, variables, name, teacher)
  feed = {
      'image': jax.ShapeDtypeStruct((1, training.batch_size, *training.image_shape), jnp.uint8),
      'label': jax.ShapeDtypeStruct((1, training.batch_size), jnp.int32),
      'index': jax.ShapeDtypeStruct((1, training.batch_size), jnp.int32),
  }
  return Step(problem.compiled(), jax.eval_shape(lambda v: problem.state(v, 0), variables),
              problem.task.frozen, feed)


def head_variables(training: Training) -> dict[str, Any]:
  """Returns the shapes of the heads' variables."""
  return networks.abstract_heads(training.networks())


def stepper(made: Step) -> Callable[[], None]:
  """Returns a function that does one step on all devices and waits for its end."""
  kept = [devices_lib.replicate(_filled(made.state))]
  frozen = devices_lib.replicate(_filled(made.frozen))
  blank = {name: np.zeros(x.shape[1:], x.dtype) for name, x in made.feed.items()}
  feed, = steps_per_call.stacked(iter([devices_lib.shard(blank)]), [1])

  def call() -> None:
    kept[0], _ = made.step(kept[0], frozen, {}, feed)
    jax.block_until_ready(kept[0])

  return call


def _filled(tree: Any) -> Any:
  # Weights repeat a few numbers, which is fast to fill in; none of these numbers is 0.
  few = np.abs(np.random.default_rng(0).normal(0, 0.02, 4093)) + 1e-3

  def fill(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    if leaf.dtype == jnp.float32 and leaf.shape:
      return np.resize(few.astype(np.float32), leaf.shape)
    return np.ones(leaf.shape, leaf.dtype)

  return jax.tree.map(fill, tree)


def compiled_for(made: Step, devices: list) -> jax.stages.Compiled:
  """Returns the step compiled for `devices`, which this machine need not have.

  As in `kdih.runtime.devices.pmap_step`, the batch is divided among the devices and all other
  arguments are replicated.
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
