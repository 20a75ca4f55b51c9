"""The third phase: a student is trained by one method (DIH, arXiv 2103.00497, section 3).

By the method 'dih' the whole cohort teaches the student at once. With the student's logits z, the
teacher's logits t_0, the logits t_1, ..., t_k of the heads, labels y, and p_T(x) = softmax(x / T):

    L_DIH = sum_{b=0}^{k} [(1 - alpha) CE(z, y) + alpha T^2 KL(p_T(t_b) || p_T(z))]

The teachers are frozen; only the student and the modules of the method have gradients, and only the
student is exported. `kdih.methods` holds the loss of every method. A method may also train
assistants first, each of which teaches the next model, or a preparation of the student.
"""
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
  """The frozen teacher, with its heads if a cohort teaches, or an assistant in its place.

  Attributes:
    module: the module of the teacher.
    taps: the taps that feature methods read.
    frozen: those of the variables {'teacher', 'heads', 'weights'} that the method, or another
      method with the same cache, is taught by.
    cached_with: the method, and the other methods whose caches are built in the same pass over the
      images.
  """

  module: nn.Module
  taps: tuple[str, ...]
  frozen: dict[str, Any]
  cached_with: tuple[str, ...] = ()


def teacher_of(
    config: 'ml_collections.ConfigDict', built: Networks, frozen: dict[str, Any],
    cached_with: tuple[str, ...] = (),
) -> Teacher:
  """Returns the teacher, optimized for inference as `config.compute` requires.

  Args:
    config: the config of the run.
    built: the networks of the run.
    frozen: variables of the teachers; {} if the students learn from labels alone.
    cached_with: see `Teacher`.
  """
  taps = tuple(built.teacher_taps)
  if 'teacher' not in frozen:
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
  """Returns the task that trains a student by `method` from the labels and the teacher signal.

  Its variables are those of student and method, joined: {'params': {'student', 'method'}, ...}.

  Args:
    student: the module of the student.
    taps: the student's taps that the method reads.
    method: the method, which computes the loss.
    signals: provides the teacher signal.
    frozen: variables that `signals` reads, and 'weights' and 'train_labels' for the `Lesson`.
    preprocess: normalises and augments the images.
    preparing: whether the loss is that of `method.prepare`.
    streams: names of the random streams that the method draws from.
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
  """Returns the training problem of a student or of an assistant.

  Args:
    config: the config of the run.
    built: the networks of the run.
    data: the data of the run.
    variables: initial variables of student and method, joined.
    name: the name of the method.
    teacher: the teacher.
    student: the module of an assistant; None trains the student.
    make_table: builds the cache of the teacher signal; None if the teachers are live.
    preparing: whether to train the preparation of the method.
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
  return Problem(config=config, task=task, variables=variables, train=train, data=data,
                 image_shape=built.spec.image_shape)


def with_teacher(task: Task, teacher: nn.Module, teacher_variables: Any) -> Task:
  """Returns `task` with a `predict` that also returns the teacher's logits, to measure agreement.
  """
  def predict(variables, frozen, images):
    logits = task.predict(variables, frozen['task'], images)
    return {**logits, **predict_as('teacher', teacher)(frozen['teacher'], None, images)}

  return dataclasses.replace(
      task, predict=predict, frozen={'task': task.frozen, 'teacher': teacher_variables},
      reference='teacher')


def run_student(experiment: Experiment, name: str) -> dict:
  """Trains a student by the method `name`, measures and exports it.

  If the method has assistants, they are trained before, each by the previous one.

  Returns:
    The result of the phase; that of an earlier run if the phase is finished.
  """
  phase = f'student/{name}'
  if finished := experiment.workdir.result(phase):
    return finished
  teacher = _first_teacher(experiment, name)
  prepares = experiment.networks.methods[name].prepares
  for link in _chain(experiment, name):
    if experiment.workdir.result(link.phase):
      logger.info(f'{link.phase}: finished by an earlier command')
    else:
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
  """A model that is trained in a chain: an assistant or the student.

  Attributes:
    phase: the name of its phase.
    role: the role for `Experiment.key`.
    described: the description of the model for the exported variables.
    assistant: the module of the assistant; None for the student.
  """

  phase: str
  role: int
  described: dict[str, Any]
  assistant: nn.Module | None = None


def _chain(experiment: Experiment, name: str) -> list[_Link]:
  """Returns the assistants of the method `name`, in order, and the student."""
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
  """Measures and exports the trained model, and writes its result."""
  built = experiment.networks
  measured = experiment.measure(
      problem.task, outcome,  # The agreement with the teacher is measured if there is a teacher.
      with_teacher(problem.task, built.teacher, load_teacher(experiment)[0])
      if experiment.teachers.result('teacher') else problem.task)['student']
  student = dataclasses.replace(outcome, last=state.part(outcome.last, 'student'),
                                best=state.part(outcome.best, 'student'))
  every = experiment.config.methods.to_dict()
  parts = {part: every[part] for part in protocol.parts({'methods': every}, name)}
  flops = cost.forward_flops(
      link.assistant or built.student, student.best, built.spec.image_shape)
  finish(experiment, link.phase, student, {'model': link.described}, {
      **measured, 'model': link.described['name'], 'flops': flops,
      'method': experiment.config.methods[name].to_dict(), 'parts': parts})


def _next_teacher(experiment: Experiment, name: str, link: _Link) -> Teacher:
  """Returns a finished assistant as the teacher of the next model."""
  built, module = experiment.networks, link.assistant
  assert module, 'the student teaches nobody'
  like = taps_lib.abstract_variables(module, built.spec.image_shape)
  path = experiment.workdir.path / link.phase / 'variables'
  variables = exported_variables.load(path, like, f'config.methods.{name}.chain')
  return teacher_of(experiment.config, dataclasses.replace(built, teacher=module, teacher_taps={}),
                    {'teacher': variables})


def train_together(students: Sequence[tuple[Experiment, str]]) -> None:
  """Trains students together as one program, and leaves their checkpoints in their workdirs.

  `run_student` then resumes each of them, and measures and exports it. Methods with assistants are
  not trained together, because the students of different seeds have different teachers.

  Args:
    students: (run, method) of each student. The runs differ only in their seed. The methods are
      variants of one method (see `kdih.sweep.variants`), and students of the same method follow
      each other.
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
  """Trains the students from `variables`; returns their last variables, see `together.train`."""
  first, _ = students[0]
  of_method: dict[str, Problem] = {}  # The seeds of one method share one compiled step.
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
  """Returns fresh variables of the trained model and of the method's modules, joined."""
  built = experiment.networks
  variables = networks.initialise(
      link.assistant or built.student, experiment.key(link.role), built.spec.image_shape)
  overview(experiment, link.phase, link.described['name'], variables)
  method = networks.initialise_method(
      built, name, experiment.key(3), experiment.data.train_size)
  if count := cost.count_parameters(method.get('params', {})):
    logger.info(f'{link.phase}: the modules of the method {name} have {count:,} more parameters')
  return state.join(student=variables, method=method)


def _problem(
    experiment: Experiment, variables: Any, name: str, teacher: Teacher,
    assistant: nn.Module | None = None, *, preparing: bool = False,
) -> Problem:
  """Returns the training problem of a link, with a teacher cache if the config requires one."""
  config, built = experiment.config, experiment.networks
  make_table = None
  if cache_plan.serves(config, built, name) and not preparing:
    make_table = functools.partial(
        cache_plan.table, experiment, teacher.cached_with, teacher.module, teacher.frozen)
  elif config.compute.cache != 'none' and built.methods[name].taught_by != 'labels':
    logger.info(
        f'{name}: runs its teachers in every step, because config.compute.cache holds only logits '
        'and the method reads more')
  return student_problem(config, built, experiment.data, variables, name, teacher,
                         student=assistant, make_table=make_table, preparing=preparing)


def _first_teacher(experiment: Experiment, name: str) -> Teacher:
  """Returns the teacher of the method `name` and of the methods whose caches are built with it."""
  config, built = experiment.config, experiment.networks
  if built.methods[name].taught_by == 'labels':
    return teacher_of(config, built, {})
  variables, owner = load_teacher(experiment)
  frozen, names = {'teacher': variables}, cache_plan.cached_with(experiment, name)
  if 'cohort' in {built.methods[other].taught_by for other in names}:
    frozen['heads'], weights = load_heads(experiment, owner)
    frozen['weights'] = {rule: jnp.asarray(numbers) for rule, numbers in weights.items()}
  return teacher_of(config, built, frozen, names)
