"""The third phase: assistants, preparation, and the student itself, by one method."""
import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp

from kdih.cohort.members import make_teach
from kdih.config import method_presets, protocol
from kdih.distillation.lesson import Lesson
from kdih.distillation.method import STUDENT, Method
from kdih.models import cost, taps as taps_lib
from kdih.phases import cache_plan, exported_variables, networks
from kdih.phases.experiment import Experiment, PhaseOutcome, finish, overview
from kdih.phases.heads import load_heads
from kdih.phases.networks import Networks
from kdih.phases.problem import Problem, TrainingData
from kdih.phases.teacher import load_teacher, predict_as
from kdih.runtime import devices
from kdih.training import state, together
from kdih.training.task import LiveSignals, Preprocess, Signals, Task

if TYPE_CHECKING:
  import ml_collections

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Teacher:
  """Who teaches next in a chain.

  Attributes:
    module: of it.
    taps: those that methods read.
    frozen: variables {'teacher', 'heads', 'weights'}, as far as the method, or one of those that
      share its cache, is taught by them.
    cached_with: the method, and others whose caches are made in the same pass over the images.
  """

  module: nn.Module
  taps: tuple[str, ...]
  frozen: dict[str, Any]
  cached_with: tuple[str, ...] = ()


def teacher_of(
    config: 'ml_collections.ConfigDict', built: Networks, frozen: dict[str, Any],
    cached_with: tuple[str, ...] = (),
) -> Teacher:
  """Returns the frozen teacher made quick, with its heads if `frozen` has any; see `Teacher`."""
  taps = tuple(built.teacher_taps)
  if 'teacher' not in frozen:  # The labels alone teach.
    return Teacher(built.teacher, taps, frozen)
  carrying = tuple(built.taps) if 'heads' in frozen else ()
  module, variables = networks.prepare_teacher(
      config, built, built.teacher, frozen['teacher'], (*taps, *carrying))
  return Teacher(module, taps, {**frozen, 'teacher': variables}, cached_with)


def student_task(
    student: nn.Module, taps: Sequence[str], method: Method, signals: Signals, frozen: Any,
    preprocess: Preprocess, *, preparing: bool = False,
    streams: Sequence[str] = (taps_lib.DROPOUT,),
) -> Task:
  """Returns how the student learns by `method` from the labels and the teacher signal.

  Variables are those of student and method, joined: {'params': {'student', 'method'}, ...}.

  Args:
    student: its module.
    taps: those of its taps that the method reads.
    method: how it is taught.
    signals: give the teacher signal.
    frozen: what `signals` read; also 'weights' and 'train_labels', see `Lesson`.
    preprocess: shows the images.
    preparing: learn by `method.prepare`.
    streams: of random numbers that the method asks for.
  """
  def loss(params, collections, frozen, batch, signal, moment):
    variables = {'params': params, **collections}
    output, changed = taps_lib.observe(
        student, state.part(variables, 'student'), batch.images, taps, train=True,
        key=moment.dropout_key)
    lesson = Lesson(
        images=batch.images, labels=batch.labels, student=output, teacher=signal,
        weights=frozen.get('weights', {}), index=batch.index,
        train_labels=frozen.get('train_labels'), epoch=moment.epoch, key=moment.key,
        gather=devices.gather)
    beside = state.part(variables, 'method')
    terms, kept = method.apply(
        beside, lesson, mutable=taps_lib.changing(beside),
        rngs=taps_lib.stream_keys(streams, moment.dropout_key),
        method='prepare' if preparing else '__call__')
    collections = {**collections, **state.join(student=changed, method=kept)}
    return terms, (collections, {'student': output.logits})

  def predict(variables, frozen, images):
    del frozen
    variables = state.part(variables, 'student')
    return {'student': taps_lib.observe(student, variables, images, ())[0].logits}

  return Task(loss=loss, predict=predict, frozen=frozen, preprocess=preprocess, signals=signals,
              partial=True)


def student_problem(
    config: 'ml_collections.ConfigDict', built: Networks, data: TrainingData, variables: Any,
    name: str, teacher: Teacher, *, student: nn.Module | None = None,
    make_table: Callable[[], Signals] | None = None, preparing: bool = False,
) -> Problem:
  """Returns the training problem of a student.

  Args:
    config: of the run.
    built: its networks.
    data: its data.
    variables: of student and method, joined, to begin with.
    name: of the method.
    teacher: who teaches.
    student: the module that is taught, an assistant; the student unless given.
    make_table: makes the cache of the teacher signal, if it is taught from one.
    preparing: learn what the method prepares.
  """
  method, frozen = built.methods[name], dict(teacher.frozen)
  taps = tuple(built.student_taps) if student is None else ()
  if make_table:
    signals, frozen = make_table(), {'weights': frozen.get('weights', {})}
  else:
    signals = LiveSignals(
        make_teach(method.taught_by, teacher.module, teacher.taps, built.heads, tuple(built.taps)),
        config.compute.accumulate)
  if method.needs_train_labels:
    frozen['train_labels'] = jnp.asarray(data.train_labels())
  task = student_task(student or built.student, taps, method, signals, frozen,
                      data.student_preprocess, preparing=preparing, streams=built.streams[name])
  train = config.student.prepare if preparing else method_presets.training(config, name)
  return Problem(config, task, variables, train, data, built.spec.image_shape)


def with_teacher(task: Task, teacher: nn.Module, teacher_variables: Any) -> Task:
  """`task` with a `predict` that adds the teacher's logits, to measure agreement."""
  def predict(variables, frozen, images):
    logits = task.predict(variables, frozen['task'], images)
    return {**logits, **predict_as('teacher', teacher)(frozen['teacher'], None, images)}

  return dataclasses.replace(
      task, predict=predict, frozen={'task': task.frozen, 'teacher': teacher_variables},
      reference='teacher')


def run_student(experiment: Experiment, name: str) -> dict:
  """Trains a student by the method `name`, and measures how far it agrees with the teacher.

  Assistants, if the method has any, are trained before it, each by the one before.
  """
  phase = f'student/{name}'
  if finished := experiment.workdir.result(phase):
    return finished
  teacher = _first_teacher(experiment, name)
  prepares = experiment.networks.methods[name].prepares
  for link in _chain(experiment, name):
    if not experiment.workdir.result(link.phase):
      variables = _initial(experiment, name, link)
      if prepares:
        preparation = _problem(experiment, variables, name, teacher, link.assistant, preparing=True)
        variables = experiment.train(f'{link.phase}/prepare', preparation).last
      problem = _problem(experiment, variables, name, teacher, link.assistant)
      outcome = experiment.train(link.phase, problem)
      _finish(experiment, name, link, problem, outcome)
    if link.assistant:
      teacher = _next_teacher(experiment, name, link)
  return experiment.workdir.result(phase)  # type: ignore[return-value]


@dataclasses.dataclass(frozen=True)
class _Link:
  """Who is trained in a chain.

  Attributes:
    phase: its name.
    role: see `Experiment.key`.
    described: what the exported variables are of.
    assistant: the module of an assistant; None for the student.
  """

  phase: str
  role: int
  described: dict[str, Any]
  assistant: nn.Module | None = None


def _chain(experiment: Experiment, name: str) -> list[_Link]:
  """Returns the assistants of the method `name`, in their order, and the student."""
  built, phase = experiment.networks, f'student/{name}'
  num_classes = built.spec.num_classes
  student = exported_variables.describe_model(experiment.config, 'student', num_classes)
  assistants = [
      _Link(f'{phase}/assistant{number + 1}', 4 + number,
            student if model == STUDENT else
            {'name': model, 'kwargs': {}, 'num_classes': num_classes}, built.assistants[model])
      for number, model in enumerate(built.methods[name].assistants)]
  return [*assistants, _Link(phase, 2, student)]


def _finish(
    experiment: Experiment, name: str, link: _Link, problem: Problem, outcome: PhaseOutcome
) -> None:
  """Measures what was trained, and finishes its phase."""
  built = experiment.networks
  measured = experiment.measure(
      problem.task, outcome,  # With the teacher, where there is one, to see how far they agree.
      with_teacher(problem.task, built.teacher, load_teacher(experiment)[0])
      if experiment.teachers.result('teacher') else problem.task)['student']
  alone = dataclasses.replace(outcome, last=state.part(outcome.last, 'student'),
                              best=state.part(outcome.best, 'student'))
  every = experiment.config.methods.to_dict()
  parts = {part: every[part] for part in protocol.parts({'methods': every}, name)}
  flops = cost.forward_flops(
      link.assistant or built.student, alone.best, built.spec.image_shape)
  finish(experiment, link.phase, alone, {'model': link.described}, {
      **measured, 'model': link.described['name'], 'flops': flops,
      'method': experiment.config.methods[name].to_dict(), 'parts': parts})


def _next_teacher(experiment: Experiment, name: str, link: _Link) -> Teacher:
  """Returns a finished assistant as the next teacher."""
  built, module = experiment.networks, link.assistant
  assert module, 'the student teaches nobody'
  like = taps_lib.abstract_variables(module, built.spec.image_shape)
  path = experiment.workdir.path / link.phase / 'variables'
  variables = exported_variables.load(path, like, f'config.methods.{name}.chain')
  return teacher_of(experiment.config, dataclasses.replace(built, teacher=module, teacher_taps={}),
                    {'teacher': variables})


def train_together(students: Sequence[tuple[Experiment, str]]) -> None:
  """Trains students as one program, as far as that goes.

  `run_student` of each then finds its checkpoints, and does what is left. Chains are not trained
  together: each seed has assistants of its own, and so another teacher.

  Args:
    students: run and method of each. The runs differ in their seed alone; the methods are variants
      of one, see `kdih.sweep.variants`, and those of the same follow each other.
  """
  first, name = students[0]
  method = first.networks.methods[name]
  if method.assistants or len(students) == 1:
    return
  teacher = _first_teacher(first, name)
  variables = [_initial(experiment, name, _chain(experiment, name)[-1])
               for experiment, name in students]
  if method.prepares:
    prepared = _train_together(students, variables, teacher, preparing=True)
    if prepared is None:
      return
    variables = prepared
  _train_together(students, variables, teacher)


def _train_together(
    students: Sequence[tuple[Experiment, str]], variables: Sequence[Any], teacher: Teacher, *,
    preparing: bool = False,
) -> list[Any] | None:
  """Returns the last variables of the students, see `together.train`, from `variables` on."""
  first, _ = students[0]
  of_method: dict[str, Problem] = {}  # Seeds of one method share their step.
  learners = []
  for (experiment, name), own in zip(students, variables, strict=True):
    if name not in of_method:
      of_method[name] = _problem(first, own, name, teacher, preparing=preparing)
    phase = f'student/{name}' + ('/prepare' if preparing else '')
    learner = experiment.learner(phase, of_method[name], own)
    learners.append(dataclasses.replace(
        learner, phase=f'{phase} seed {experiment.config.seed}'))
  phase = f'student/{students[0][1]}' + ('/prepare' if preparing else '')
  group = together.Students([of_method[name].train_step for _, name in students],
                            first.config.sweep.together_by)
  problem = next(iter(of_method.values()))
  return together.train(
      phase, lambda: first.program(phase, problem, group), group, learners)


def _initial(experiment: Experiment, name: str, link: _Link) -> dict[str, Any]:
  """Returns fresh variables of who is trained and of what the method trains beside, joined."""
  built = experiment.networks
  variables = networks.initialise(
      link.assistant or built.student, experiment.key(link.role), built.spec.image_shape)
  overview(experiment, link.phase, link.described['name'], variables)
  beside = networks.initialise_method(
      built, name, experiment.key(3), experiment.data.train_size)
  if count := cost.count_parameters(beside.get('params', {})):
    logger.info(f'{link.phase}: {count:,} parameters of the method {name} are trained beside it')
  return state.join(student=variables, method=beside)


def _problem(
    experiment: Experiment, variables: Any, name: str, teacher: Teacher,
    assistant: nn.Module | None = None, *, preparing: bool = False,
) -> Problem:
  """Returns `student_problem`, from a cache where the config asks for one that serves."""
  config, built = experiment.config, experiment.networks
  make_table = None
  if cache_plan.serves(config, built, name) and not preparing:
    make_table = functools.partial(
        cache_plan.table, experiment, teacher.cached_with, teacher.module, teacher.frozen)
  elif config.compute.cache != 'none' and built.methods[name].taught_by != 'labels':
    logger.warning(
        f'{name}: is taught without config.compute.cache, which does not hold what it reads')
  return student_problem(config, built, experiment.data, variables, name, teacher,
                         student=assistant, make_table=make_table, preparing=preparing)


def _first_teacher(experiment: Experiment, name: str) -> Teacher:
  """Returns who teaches by the method `name`, and all who have a cache in common with it."""
  config, built = experiment.config, experiment.networks
  if built.methods[name].taught_by == 'labels':
    return teacher_of(config, built, {})
  variables, owner = load_teacher(experiment)
  frozen, names = {'teacher': variables}, cache_plan.cached_with(experiment, name)
  if 'cohort' in {built.methods[other].taught_by for other in names}:
    frozen['heads'], weights = load_heads(experiment, owner)
    frozen['weights'] = {rule: jnp.asarray(numbers) for rule, numbers in weights.items()}
  return teacher_of(config, built, frozen, names)
