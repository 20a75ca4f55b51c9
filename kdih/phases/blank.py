"""The training problems of a run without data or trained variables, to be traced or timed."""
import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterator
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kdih.cohort.cache import build, lookup
from kdih.cohort.member_weights import RULES
from kdih.data.splits import Splits
from kdih.distillation.signal import TeacherSignal
from kdih.models import taps as taps_lib
from kdih.phases import cache_plan, networks
from kdih.phases.heads import heads_problem
from kdih.phases.networks import Networks
from kdih.phases.problem import Problem, TrainingData
from kdih.phases.student import Teacher, student_problem, teacher_of
from kdih.phases.teacher import teacher_problem
from kdih.training import state
from kdih.training.task import Signals

if TYPE_CHECKING:
  import ml_collections


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
  """A training step of a phase.

  Attributes:
    phase: the name of the phase, such as 'student/fitnets/prepare'.
    model: the model that is trained, as the config names it.
    train: the group of config fields that the phase trains by, such as 'teacher.train'.
    signal_source: identifies the live teachers that compute the teacher signal; None if no teacher
      runs in the step. The teacher signal costs the same in all steps with the same source.
    cached: shapes of the cached teacher signal of one image; None if the step reads no cache.
    problem: builds the training problem.
  """

  phase: str
  model: str
  train: str
  signal_source: Hashable
  cached: TeacherSignal | None
  problem: Callable[[], Problem]


class BlankRun:
  """A run on made images, whose variables are zeros or only shapes.

  Args:
    config: the checked config of the run.
    built: the networks of the run.
    splits: made images.
    shapes: whether variables are `jax.ShapeDtypeStruct`s. A problem can then be traced, but not
      run, and the teacher's batch norms are not folded, because folding needs numbers.
  """

  def __init__(
      self, config: 'ml_collections.ConfigDict', built: Networks, splits: Splits, *,
      shapes: bool = False):
    self._shapes = shapes
    if shapes:
      config = config.copy_and_resolve_references()
      config.compute.fold_batch_norm = False
    self.config, self.built = config, built
    self.data = TrainingData(config, splits)
    self._teachers: dict[str, Teacher] = {}

  def _blank(self, shapes: Any) -> Any:
    if self._shapes:
      return shapes
    return jax.tree.map(jnp.zeros_like, shapes)

  def steps(self, phase: str) -> Iterator[Step]:
    """Yields the training steps of the phase 'teacher', 'heads' or 'student/NAME', in order.

    A phase has no step if the config names existing variables for it.
    """
    config = self.config
    if phase == 'teacher':
      if not config.teacher.variables:
        yield Step(phase=phase, model=config.teacher.name, train='teacher.train',
                   signal_source=None, cached=None, problem=self._teacher_problem)
    elif phase == 'heads':
      if not config.heads.variables:
        cached = cache_plan.taps_signal(self.built) if config.compute.cache_taps else None
        yield Step(phase=phase, model=f'{len(self.built.taps)} heads, {config.heads.kind}',
                   train='heads.train', signal_source=None if cached else 'taps', cached=cached,
                   problem=functools.partial(self._heads_problem, cached))
    else:
      yield from self._student_steps(phase.removeprefix('student/'))

  def _teacher_problem(self) -> Problem:
    return teacher_problem(
        self.config, self.built, self.data, self._blank(self.built.teacher_variables))

  def _heads_problem(self, cached: TeacherSignal | None) -> Problem:
    built = self.built
    return heads_problem(
        self.config, built, self.data, self._blank(networks.abstract_heads(built)),
        self._blank(built.teacher_variables),
        (lambda teach, frozen: self._table(cached)) if cached else None)

  def _student_steps(self, name: str) -> Iterator[Step]:
    config, built = self.config, self.built
    taught_by = built.methods[name].taught_by
    teacher: Callable[[], Teacher] = functools.partial(self._teacher_of, taught_by)
    source: Hashable = None if taught_by == 'labels' else taught_by
    for number, model in enumerate(built.methods[name].assistants):
      module = built.assistants[model]
      yield from self._taught(
          f'student/{name}/assistant{number + 1}', name, model, module, teacher, source)
      teacher, source = functools.partial(self._next_teacher, module), (name, number)
    yield from self._taught(
        f'student/{name}', name, config.student.name, None, teacher, source)

  def _taught(
      self, phase: str, name: str, model: str, assistant: nn.Module | None,
      teacher: Callable[[], Teacher], source: Hashable,
  ) -> Iterator[Step]:
    """Yields the step of the method's preparation, if it has one, and the step of its training."""
    if self.built.methods[name].prepares:
      yield Step(phase=f'{phase}/prepare', model=model, train='student.prepare',
                 signal_source=source, cached=None, problem=functools.partial(
                     self._student_problem, name, assistant, teacher, None, preparing=True))
    served = cache_plan.serves(self.config, self.built, name)
    cached = self.built.cached_signals[name] if served else None
    yield Step(phase=phase, model=model, train='student.train',
               signal_source=None if served else source, cached=cached,
               problem=functools.partial(self._student_problem, name, assistant, teacher, cached))

  def _student_problem(
      self, name: str, assistant: nn.Module | None, teacher: Callable[[], Teacher],
      cached: TeacherSignal | None, *, preparing: bool = False,
  ) -> Problem:
    built = self.built
    student = (taps_lib.abstract_variables(assistant, built.spec.image_shape) if assistant
               else built.student_variables)
    method = networks.abstract_method(built, name, self.data.train_size)
    variables = self._blank(state.join(student=student, method=method))
    return student_problem(
        self.config, built, self.data, variables, name, teacher(), student=assistant,
        make_table=(lambda: self._table(cached)) if cached else None, preparing=preparing)

  def _teacher_of(self, taught_by: str) -> Teacher:
    """Returns the teacher of the methods whose `Method.taught_by` is `taught_by`."""
    built = self.built
    if taught_by not in self._teachers:
      frozen: dict[str, Any] = {}
      if taught_by != 'labels':
        frozen['teacher'] = built.teacher_variables
      if taught_by == 'cohort':
        member_weights = jax.ShapeDtypeStruct((len(built.taps) + 1,), jnp.float32)
        frozen['heads'] = networks.abstract_heads(built)
        frozen['weights'] = dict.fromkeys(RULES, member_weights) if built.validated else {}
      self._teachers[taught_by] = teacher_of(self.config, built, self._blank(frozen))
    return self._teachers[taught_by]

  def _next_teacher(self, module: nn.Module) -> Teacher:
    """Returns an assistant as the teacher of the next model in a chain."""
    built = dataclasses.replace(self.built, teacher=module, teacher_taps={})
    return teacher_of(
        self.config, built, {'teacher': self._blank(built.teacher_variables)})

  def table_bytes(self, like: TeacherSignal) -> int:
    """Returns the bytes that a cache of such signals takes on each device; 0 if it is elsewhere."""
    if self.config.compute.cache_place != 'device':
      return 0
    return build.size(self.table_shape(like)) // jax.device_count()

  def table_shape(self, like: TeacherSignal) -> tuple[int, int, int]:
    """Returns (images, slots, numbers in a row) of a cache of such signals."""
    return build.Table(len(self.data.train_subset), self.data.student_preprocess.num_slots, like,
                       {}).shape

  def _table(self, like: TeacherSignal) -> Signals:
    """Returns a cache of zeros; only a cache on the devices takes memory."""
    images, *row = self.table_shape(like)
    on_device = self.config.compute.cache_place == 'device' and not self._shapes
    slices = jax.device_count() if on_device else 1
    rows = np.broadcast_to(np.zeros((), build.DTYPE), (-(-images // slices) * slices, *row))
    kind = lookup.DeviceTable if on_device else lookup.HostTable
    return kind(rows, like, self.data.train_subset, self.data.student_preprocess)
