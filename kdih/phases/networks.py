"""Builds the networks of a run from the config, and checks by their shapes that they fit."""
import dataclasses
import functools
import pathlib
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdih import errors, methods
from kdih.cohort import frozen_teacher, head_modules
from kdih.cohort.head_modules import Heads
from kdih.cohort.member_weights import RULES
from kdih.cohort.members import FINAL
from kdih.data.spec import DataSpec
from kdih.distillation.lesson import Lesson
from kdih.distillation.method import STUDENT, Context, Method
from kdih.distillation.signal import TeacherSignal
from kdih.models import model_checks, registry, taps as taps_lib
from kdih.models.taps import Output, Shapes, Variables
from kdih.runtime import devices
from kdih.training.step import METRICS

if TYPE_CHECKING:
  import ml_collections


@dataclasses.dataclass(frozen=True, kw_only=True)
class Networks:
  """The modules of a run, and the methods by which its students are taught.

  Attributes:
    spec: the data set: shape of an image, number and names of classes.
    teacher: the module of the teacher.
    student: the module of the student.
    heads: one module that holds all heads.
    taps: {tap: shape of one example's feature} of the taps that carry a head, in cohort order.
    methods: {name: method} of the methods to run.
    teacher_taps: {tap: shape} of the teacher's taps that feature methods compare.
    student_taps: {tap: shape} of the student's taps that feature methods compare.
    assistants: {model: module} of the assistants of all methods.
    validated: whether there is a validation split.
    streams: {method: names of the random streams that it draws from}; see `taps.with_streams`.
  """

  spec: DataSpec
  teacher: nn.Module
  student: nn.Module
  heads: Heads
  taps: Shapes
  methods: dict[str, Method]
  teacher_taps: Shapes
  student_taps: Shapes
  assistants: dict[str, nn.Module]
  validated: bool
  streams: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

  @functools.cached_property
  def teacher_variables(self) -> Variables:
    """Returns the shapes of the teacher's variables."""
    return taps_lib.abstract_variables(self.teacher, self.spec.image_shape)

  @functools.cached_property
  def student_variables(self) -> Variables:
    """Returns the shapes of the student's variables."""
    return taps_lib.abstract_variables(self.student, self.spec.image_shape)

  @functools.cached_property
  def teacher_output(self) -> Output:
    """Returns the shapes of the teacher's output for two images, with its `teacher_taps`."""
    return taps_lib.trace(self.teacher, self.spec.image_shape).output(self.teacher_taps, 2)

  @functools.cached_property
  def student_output(self) -> Output:
    """Returns the shapes of the student's output for two images, with its `student_taps`."""
    return taps_lib.trace(self.student, self.spec.image_shape).output(self.student_taps, 2)

  @functools.cached_property
  def cached_signals(self) -> dict[str, TeacherSignal]:
    """Returns {method: shapes of the cached teacher signal} for all methods that can be cached."""
    signals = {}
    for name, method in self.methods.items():
      if method.summary and method.taught_by != 'labels' and not method.assistants:
        lesson = blank_lesson(self, method, num_examples=2)
        signals[name] = jax.eval_shape(method.summary.extract, lesson.teacher, dict(lesson.weights))
    return signals


def build(config: 'ml_collections.ConfigDict', spec: DataSpec) -> Networks:
  """Builds the networks, and traces every model and method in the modes that the run uses.

  Nothing is computed.

  Raises:
    ConfigError: a model, tap or method is unknown, or does not fit the data set.
    UnfitError: a method does not fit this pair of teacher and student.
  """
  methods.check(config.methods.to_dict())
  teacher, student = (_model(config, spec, role) for role in ('teacher', 'student'))
  taps = taps_lib.choose_taps(teacher, spec.image_shape, config.heads.taps)
  head_modules.check_names(taps, 'config.heads.taps')
  chosen = {name: _method(config, spec, len(taps) + 1, name) for name in config.student.methods}
  assistants = {model: _model_for_method(config, spec, model, f'config.methods.{name}')
                for name, method in chosen.items() for model in method.assistants}
  built = Networks(
      spec=spec, teacher=teacher, student=student,
      heads=Heads(spec.num_classes, config.heads.kind), taps=taps, methods=chosen,
      teacher_taps=_compared(teacher, spec, config.student.teacher_taps, 'teacher_taps'),
      student_taps=_compared(student, spec, config.student.taps, 'taps'), assistants=assistants,
      validated=config.data.validation_fraction > 0)
  for model in (teacher, *assistants.values()):
    _check_teaching(config, built, model)
  _check_training(config, built)
  streams = {name: _check_pair(config, built, name) for name in chosen}
  return dataclasses.replace(built, streams=streams)


def _model(config: 'ml_collections.ConfigDict', spec: DataSpec, role: str) -> nn.Module:
  fields = config[role]
  return _create(config, spec, fields.name, f'config.{role}.name', **fields.kwargs.to_dict())


def _create(config, spec: DataSpec, name: str, setting: str, **kwargs) -> nn.Module:
  model = registry.create(
      name, spec.num_classes, dtype=jnp.dtype(config.dtype),
      axis_name=devices.AXIS if config.sync_batch_norm else None, setting=setting, **kwargs)
  model_checks.check_evaluation(model, spec.image_shape, spec.num_classes, setting)
  return model


def _model_for_method(config, spec: DataSpec, name: str, setting: str) -> nn.Module:
  """Returns a peer or an assistant, which is trained with the fields of `config.student.train`."""
  if name == STUDENT:
    return _model(config, spec, 'student')
  model = _create(config, spec, name, setting)
  model_checks.check_training(model, spec.image_shape, spec.num_classes,
                              _at_once(config, config.student.train), setting)
  return model


def _at_once(config: 'ml_collections.ConfigDict', train: 'ml_collections.ConfigDict') -> int:
  """Returns the number of images that a device applies a model to at a time in a phase."""
  return max(
      train.global_batch_size // devices.num_devices() // max(config.compute.accumulate, 1), 1)


def _check_training(config: 'ml_collections.ConfigDict', built: Networks) -> None:
  """Raises ConfigError unless the teacher and the student, if the run trains them, can train."""
  spec = built.spec
  trained: list[tuple[nn.Module, str, Any, Shapes]] = []
  if 'teacher' in config.phases and not config.teacher.variables:
    trained.append((built.teacher, 'config.teacher.name', config.teacher.train, {}))
  if 'student' in config.phases:
    trains = [config.student.train]
    if any(method.prepares for method in built.methods.values()):
      trains.append(config.student.prepare)
    trained += [(built.student, 'config.student.name', train, built.student_taps)
                for train in trains]
  for model, setting, train, taps in trained:
    size = _at_once(config, train)
    model_checks.check_training(model, spec.image_shape, spec.num_classes, size, setting)
    model_checks.check_taps(model, spec.image_shape, size, taps, 'config.student.taps')


def _check_teaching(
    config: 'ml_collections.ConfigDict', built: Networks, model: nn.Module
) -> None:
  """Raises ConfigError unless a teacher can compute in `config.compute.teacher_dtype`."""
  dtype = config.compute.teacher_dtype
  frozen_teacher.check_dtype(model, dtype)
  if dtype:
    with errors.of_users_code('config.compute.teacher_dtype: '
                              f'{type(model).__name__} cannot compute in {dtype}: '):
      taps = (*built.taps, *built.teacher_taps) if model is built.teacher else ()
      shape = built.spec.image_shape
      jax.eval_shape(
          functools.partial(_logits, model.clone(dtype=jnp.dtype(dtype)), taps),
          taps_lib.abstract_variables(model, shape), jax.ShapeDtypeStruct((2, *shape), jnp.float32))


def _logits(model: nn.Module, taps: tuple[str, ...], variables, images) -> jax.Array:
  return taps_lib.observe(model, variables, images, taps)[0].logits


def _method(
    config, spec: DataSpec, num_members: int, name: str, within: tuple[str, ...] = ()
) -> Method:
  if name in within:
    raise errors.ConfigError(
        f'config.methods.{name}: contains itself; set config.methods.{name}.methods to other '
        'methods')
  if name not in config.methods:
    raise errors.unknown('config.methods', name, config.methods)
  setting = f'config.methods.{name}'
  context = Context(
      num_members=num_members, axis_name=devices.AXIS if config.sync_batch_norm else None,
      model=functools.partial(_model_for_method, config, spec, setting=setting),
      method=functools.partial(_method, config, spec, num_members, within=(*within, name)),
      mean_soft_label=config.compute.mean_soft_label, cache_members=config.compute.cache_members)
  return methods.create(name, config.methods[name].to_dict(), context)


def _compared(model: nn.Module, spec: DataSpec, wanted: tuple[str, ...], field: str) -> Shapes:
  if not wanted and not taps_lib.sown(model, spec.image_shape):
    return {}
  return taps_lib.choose_taps(model, spec.image_shape, wanted, f'config.student.{field}')


def _check_pair(
    config: 'ml_collections.ConfigDict', built: Networks, name: str
) -> tuple[str, ...]:
  """Traces a method with this teacher and this student.

  Returns:
    The names of the random streams that the method draws from.

  Raises:
    UnfitError: the method does not fit this teacher and this student.
  """
  parts = config.compute.accumulate
  if parts > 1 and built.methods[name].couples:
    raise errors.UnfitError(
        f'config.compute.accumulate: is {parts}, but the method {name} compares the images of a '
        'batch with each other, and its batches cannot be divided; set it to 1', name)
  try:
    variables = abstract_method(built, name, num_examples=2)
    after, streams = _after_a_step(built, name, variables)
    model_checks.check_collections(variables, after, f'config.methods.{name}')
    return streams
  except errors.ConfigError:
    raise
  except (TypeError, ValueError) as error:  # jax raises TypeError for shapes that do not fit.
    reason = errors.first_line(error)
    raise errors.UnfitError(
        f'config.methods.{name}: does not fit the teacher {config.teacher.name} and the student '
        f'{config.student.name}: {reason}{_place(error)}', name) from error
  except Exception as error:  # Flax raises many kinds of errors for options of a wrong type.
    raise errors.ConfigError(f'config.methods.{name}: cannot be built with these options: '
                             f'{errors.first_line(error)}{_place(error)}') from error


def _place(error: Exception) -> str:
  """Returns ' (FILE, line N)' for the last line of a method that led to an error, or ''."""
  lines = [f' ({pathlib.Path(frame.f_code.co_filename).name}, line {line})'
           for frame, line in traceback.walk_tb(error.__traceback__)
           if frame.f_globals.get('__name__', '').startswith(f'{methods.__name__}.')]
  return lines[-1] if lines else ''


def prepare_teacher(
    config: 'ml_collections.ConfigDict', built: Networks, module: nn.Module, variables: Variables,
    taps: Sequence[str],
) -> tuple[nn.Module, Variables]:
  """Returns a frozen teacher optimized for inference as the config requires.

  See `frozen_teacher.prepare`.
  """
  compute = config.compute
  return frozen_teacher.prepare(
      module, variables, taps, fold_batch_norm=compute.fold_batch_norm,
      dtype=compute.teacher_dtype)


def initialise(model: nn.Module, key: jax.Array, image_shape: tuple[int, ...]) -> dict[str, Any]:
  """Returns fresh variables of a model for images of `image_shape`."""
  return _run_once(lambda key: taps_lib.initial(model, key, jnp.zeros((1, *image_shape))), key)


def initialise_heads(networks: Networks, key: jax.Array) -> dict[str, Any]:
  """Returns fresh {'params'} of the heads."""
  features = {tap: jnp.zeros((1, *shape)) for tap, shape in networks.taps.items()}
  return dict(networks.heads.init(key, features))


def abstract_heads(networks: Networks) -> dict[str, Any]:
  """Returns the shapes of the variables from `initialise_heads`; nothing is computed."""
  return jax.eval_shape(lambda: initialise_heads(networks, jax.random.key(0)))


def initialise_method(
    built: Networks, name: str, key: jax.Array, num_examples: int
) -> dict[str, Any]:
  """Returns fresh variables of the modules and memories of a method; {} if it has none.

  Args:
    built: the networks.
    name: the name of the method, one of `built.methods`.
    key: the random key.
    num_examples: the size of the train split.
  """
  return _run_once(lambda key: _initial(built, name, key, num_examples), key)


def abstract_method(built: Networks, name: str, num_examples: int) -> dict[str, Any]:
  """Returns the shapes of the variables from `initialise_method`; nothing is computed."""
  return jax.eval_shape(lambda: _initial(built, name, jax.random.key(0), num_examples))


def _initial(built: Networks, name: str, key: jax.Array, num_examples: int) -> dict[str, Any]:
  def prepare_and_call(method: Method, lesson: Lesson):
    if method.prepares:
      method.prepare(lesson)
    return method(lesson)

  lesson = blank_lesson(built, built.methods[name], num_examples)
  return taps_lib.kept(dict(built.methods[name].init(key, lesson, method=prepare_and_call)))


def _after_a_step(
    built: Networks, name: str, variables: Variables
) -> tuple[Variables, tuple[str, ...]]:
  """Traces the losses of a method.

  Returns:
    The shapes of the method's variables after its losses have updated its collections, and the
    names of the random streams that the losses draw from.
  """
  method = built.methods[name]
  streams: dict[str, Any] = {}

  def step(which: str, variables):
    def apply(rngs):
      streams.update(rngs)
      lesson = blank_lesson(built, method, num_examples=2)
      terms, changed = method.apply(
          variables, lesson, mutable=taps_lib.changing(variables), rngs=rngs, method=which)
      _check_terms(terms, f'config.methods.{name}')
      return terms, changed

    return {**variables, **taps_lib.with_streams(apply, jax.random.key(0))[1]}

  for which in ('prepare', '__call__') if method.prepares else ('__call__',):
    _, variables = jax.make_jaxpr(functools.partial(step, which), axis_env=[(devices.AXIS, 1)],
                                  return_shape=True)(variables)
  return variables, tuple(streams)


def _check_terms(terms: Any, setting: str) -> None:
  """Raises ConfigError unless the terms of a loss of two images are named arrays of one number
  for each image, or of one number."""
  if not isinstance(terms, dict) or not terms:
    raise errors.ConfigError(
        f"{setting}: the class of the method returns no terms of a loss; return a dict such as "
        "{'ce': ..., 'kl': ...}, whose sum is the loss")
  for name in METRICS:
    if name in terms:
      raise errors.ConfigError(
          f'{setting}: the class of the method returns a term {name!r}, which is the name of a '
          'metric of every step; choose another name')
  for name, term in terms.items():
    if not hasattr(term, 'dtype') or term.shape not in ((), (2,)):
      raise errors.ConfigError(
          f'{setting}: the class of the method returns a term {name!r} that is not an array of one '
          'number for each image or of one number; return such an array, for instance by '
          'jnp.asarray')


def blank_lesson(built: Networks, method: Method, num_examples: int) -> Lesson:
  """Returns a lesson of two images with the right shapes, whose arrays are zeros.

  Args:
    built: the networks.
    method: the method that is given the lesson.
    num_examples: the size of the train split.
  """
  images = jnp.zeros((2, *built.spec.image_shape))
  names = (*built.taps, FINAL) if method.taught_by == 'cohort' else ()
  teacher = TeacherSignal()
  if method.taught_by != 'labels':
    output: Output = jax.tree.map(jnp.zeros_like, built.teacher_output)
    teacher = TeacherSignal(
        logits=output.logits, features=output.features, preactivations=output.preactivations,
        embedding=output.embedding,
        members=jnp.zeros((2, len(names), built.spec.num_classes)) if names else None)
  return Lesson(
      images=images, labels=jnp.zeros(2, jnp.int32),
      student=jax.tree.map(jnp.zeros_like, built.student_output), teacher=teacher,
      weights={rule: jnp.ones(len(names)) for rule in RULES if names and built.validated},
      index=jnp.zeros(2, jnp.int32), train_labels=jnp.zeros(num_examples, jnp.int32),
      epoch=jnp.zeros(()), key=jax.random.key(0))


def _run_once(init, key: jax.Array) -> dict[str, Any]:
  # On a CPU, XLA optimizes the initialisation of a deep model for minutes, and it runs only once.
  return jax.jit(init, compiler_options={'xla_backend_optimization_level': 0})(key)
