"""The third phase: assistants, preparation, and the student itself, by one method."""
import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kdih.cohort.members import Teach, make_teach
from kdih.config import method_presets, protocol
from kdih.distillation.lesson import Lesson
from kdih.distillation.method import STUDENT, Method
from kdih.models import cost, taps as taps_lib
from kdih.phases import cache_plan, exported_variables, networks
from kdih.phases.experiment import Experiment, finish, overview
from kdih.phases.heads import load_heads
from kdih.phases.teacher import load_teacher, predict_as
from kdih.runtime import devices
from kdih.runtime.progress import say
from kdih.training import state, together
from kdih.training.task import LiveOutputs, Task, TeacherOutputs


def student_task(
    student: nn.Module, taps: Sequence[str], method: Method, teach: Teach, frozen: Any,
    *, preparing: bool = False, table: TeacherOutputs | None = None,
) -> Task:
  """The student learns by `method` from what `teach(frozen, images)` says.

  Variables are those of student and method, joined: {'params': {'student', 'method'}, ...}.

  Args:
    student: its module.
    taps: those of its taps that the method reads.
    method: how it is taught.
    teach: from `make_teach`.
    frozen: what `teach` reads; also 'weights' and 'train_labels', see `Lesson`.
    preparing: learn by `method.prepare`.
    table: of what the method hears, in the place of what `teach` says.
  """
  def loss(params, collections, frozen, batch, key):
    variables = {'params': params, **collections}
    output, changed = taps_lib.observe(
        student, state.part(variables, 'student'), batch['image'], taps, train=True,
        key=key)
    teacher, members = batch['taught']
    lesson = Lesson(
        batch['image'], batch['label'], output, teacher, members, frozen.get('weights', {}),
        batch['index'], frozen.get('train_labels'), batch['epoch'], batch['key'], devices.gather,
        batch['heard'].astype(jnp.float32) if 'heard' in batch else None)
    beside = state.part(variables, 'method')
    loss, kept = taps_lib.with_streams(lambda rngs: method.apply(
        beside, lesson, mutable=taps_lib.changing(beside), rngs=rngs,
        method='prepare' if preparing else '__call__'), key)
    collections = {**collections, **state.join(student=changed, method=kept)}
    return loss.mean(), (collections, {'student': output.logits})

  def predict(variables, frozen, images):
    del frozen
    variables = state.part(variables, 'student')
    return {'student': taps_lib.observe(student, variables, images, ())[0].logits}

  return Task(loss, predict, frozen, partial=True, table=table or LiveOutputs(),
              teach=lambda frozen, batch: teach(frozen, batch['image']))


def with_teacher(task: Task, teacher: nn.Module, teacher_variables: Any) -> Task:
  """`task` with a `predict` that adds the teacher's logits, to measure agreement."""
  def predict(variables, frozen, images):
    logits = task.predict(variables, frozen['task'], images)
    return {**logits, **predict_as('teacher', teacher)(frozen['teacher'], None, images)}

  return Task(task.loss, predict, {'task': task.frozen, 'teacher': teacher_variables},
              reference='teacher')


@dataclasses.dataclass(frozen=True)
class _Teacher:
  """Who teaches next in a chain.

  Attributes:
    module: of it.
    taps: those that are read.
    frozen: what is frozen.
    heard_with: methods whose cache is made in one, the one that is taught first.
  """

  module: nn.Module
  taps: tuple[str, ...]
  frozen: dict[str, Any]
  heard_with: tuple[str, ...] = ()


def run_student(experiment: Experiment, name: str) -> dict:
  """Trains a student by the method `name`, and measures how far it agrees with the teacher."""
  config, built, phase = experiment.config, experiment.networks, f'student/{name}'
  if finished := experiment.workdir.result(phase):
    return finished
  teacher = _first_teacher(experiment, name)
  for number, model in enumerate(built.methods[name].assistants):
    teacher = _run_assistant(experiment, name, number, model, teacher)
  described = exported_variables.describe_model(config, 'student', built.spec.num_classes)
  return _run(experiment, name, phase, built.student, tuple(built.student_taps), teacher, 2,
              described)


def train_together(students: Sequence[tuple[Experiment, str]]) -> None:
  """Trains students as one program, as far as that goes.

  `run_student` of each then finds its checkpoints, and does what is left. Chains are not trained
  together: each seed has assistants of its own, and so another teacher.

  Args:
    students: run and method of each. The runs differ in their seed alone; the methods are variants
      of one, see `kdih.sweep.variants`, and those of the same follow each other.
  """
  first, name = students[0]
  built = first.networks
  method = built.methods[name]
  if method.assistants or len(students) == 1:
    return
  teacher = _first_teacher(first, name)
  variables = [_initial(experiment, name, f'student/{name}', built.student, 2,
                        experiment.config.student.name) for experiment, name in students]
  if method.prepares:
    prepared = _train_together(students, variables, teacher, preparing=True)
    if prepared is None:
      return
    variables = prepared
  _train_together(students, variables, teacher)


def _train_together(
    students: Sequence[tuple[Experiment, str]], variables: Sequence[Any], teacher: _Teacher, *,
    preparing: bool = False,
) -> list[Any] | None:
  """The last variables of the students, see `together.train`; they have those to begin with."""
  first, _ = students[0]
  built, config = first.networks, first.config
  trains = {name: config.student.prepare if preparing else method_presets.training(config, name)
            for _, name in students}
  learning = {}
  for (_, name), own in zip(students, variables, strict=True):
    if name not in learning:
      task = _task(first, built.student, tuple(built.student_taps), name, teacher,
                   preparing=preparing)
      learning[name] = first.learning(task, own, trains[name])
  phases = [f'student/{name}' + ('/prepare' if preparing else '') for _, name in students]
  learners = []
  for (experiment, name), phase, own in zip(students, phases, variables, strict=True):
    learner = experiment.learner(phase, own, learning[name].tx)
    named = f'{phase} seed {experiment.config.seed}'
    learners.append(dataclasses.replace(learner, phase=named))
  return together.train(phases[0], lambda: first.program(
      phases[0], [learning[name] for _, name in students], next(iter(trains.values())),
      config.sweep.together_by), learners)


def _run_assistant(
    experiment: Experiment, name: str, number: int, model: str, teacher: _Teacher
) -> _Teacher:
  """Trains the assistant `number` of a chain, and makes it the next teacher."""
  built, phase = experiment.networks, f'student/{name}/assistant{number + 1}'
  module = built.assistants[model]
  if not experiment.workdir.result(phase):
    num_classes = built.spec.num_classes
    described = ({'name': model, 'kwargs': {}, 'num_classes': num_classes} if model != STUDENT else
                 exported_variables.describe_model(experiment.config, 'student', num_classes))
    _run(experiment, name, phase, module, (), teacher, 4 + number, described)
  like = taps_lib.abstract_variables(module, built.spec.image_shape)
  path = experiment.workdir.path / phase / 'variables'
  variables = exported_variables.load(path, like, f'config.methods.{name}.chain')
  return _prepared(experiment, module, (), (), {'teacher': variables})


def _run(
    experiment: Experiment, name: str, phase: str, student: nn.Module, taps: tuple[str, ...],
    teacher: _Teacher, role: int, described: dict,
) -> dict:
  """Trains `student` by the method `name` as the phase `phase`, and finishes the phase.

  Args:
    experiment: the run.
    name: of the method.
    phase: the name of the phase.
    student: the module to teach.
    taps: of the student, that the method reads.
    teacher: who teaches.
    role: see `Experiment.key`.
    described: what the exported variables are of.
  """
  method = experiment.networks.methods[name]
  variables = _initial(experiment, name, phase, student, role, described['name'])
  if method.prepares:
    task = _task(experiment, student, taps, name, teacher, preparing=True)
    prepared = experiment.train(
        f'{phase}/prepare', task, variables, experiment.config.student.prepare)
    variables = prepared.last
  task = _task(experiment, student, taps, name, teacher)
  learnt = experiment.train(
      phase, task, variables, method_presets.training(experiment.config, name))
  measured = experiment.measure(
      task, learnt,  # With the teacher, where there is one, to see how far they agree.
      with_teacher(task, experiment.networks.teacher, load_teacher(experiment)[0])
      if experiment.teachers.result('teacher') else task)['student']
  alone = dataclasses.replace(learnt, last=state.part(learnt.last, 'student'),
                              best=state.part(learnt.best, 'student'))
  every = experiment.config.methods.to_dict()
  parts = {part: every[part] for part in protocol.parts({'methods': every}, name)}
  flops = cost.forward_flops(student, alone.best, experiment.networks.spec.image_shape)
  return finish(experiment, phase, alone, {'model': described}, {
      **measured, 'model': described['name'], 'flops': flops,
      'method': experiment.config.methods[name].to_dict(), 'parts': parts})


def _initial(
    experiment: Experiment, name: str, phase: str, student: nn.Module, role: int, model: str
) -> dict[str, Any]:
  """Fresh variables of the student and of what the method trains beside it, joined."""
  built, shape = experiment.networks, experiment.networks.spec.image_shape
  variables = networks.initialise(student, experiment.key(role), shape)
  overview(experiment, phase, model, variables)
  beside = networks.initialise_method(built, name, experiment.key(3), experiment.train_size)
  if count := cost.count_parameters(beside.get('params', {})):
    say(f'{phase}: {count:,} parameters of the method {name} are trained beside it')
  return state.join(student=variables, method=beside)


def _task(
    experiment: Experiment, student: nn.Module, taps: tuple[str, ...], name: str,
    teacher: _Teacher, *, preparing: bool = False,
) -> Task:
  built, frozen = experiment.networks, dict(teacher.frozen)
  method = built.methods[name]
  table = None
  if cache_plan.serves(experiment.config, built, name) and not preparing:
    table = cache_plan.table(experiment, teacher.heard_with, teacher.module, frozen)
    frozen = {'weights': frozen.get('weights', {})}  # The others are heard from the table.
  elif experiment.config.compute.cache != 'none' and method.taught_by != 'labels':
    say(f'{name}: hears more of the teacher than config.compute.cache holds, and does without it')
  taught_by = 'labels' if table else method.taught_by
  teach = make_teach(
      taught_by, teacher.module, teacher.taps, built.heads, tuple(built.taps))
  if method.needs_train_labels:
    frozen['train_labels'] = jnp.asarray(experiment.train_labels())
  return student_task(student, taps, method, teach, frozen, preparing=preparing,
                      table=table)


def _first_teacher(experiment: Experiment, name: str) -> _Teacher:
  """Who teaches by the method `name`, and with it what others hear who have a cache in common."""
  built, taps = experiment.networks, tuple(experiment.networks.teacher_taps)
  if built.methods[name].taught_by == 'labels':
    return _Teacher(built.teacher, taps, {})
  variables, owner = load_teacher(experiment)
  frozen, names = {'teacher': variables}, cache_plan.heard_with(experiment, name)
  members: tuple[str, ...] = ()
  if 'cohort' in {built.methods[other].taught_by for other in names}:
    frozen['heads'], weights = load_heads(experiment, owner)
    frozen['weights'] = {rule: jnp.asarray(numbers) for rule, numbers in weights.items()}
    members = tuple(built.taps)
  return dataclasses.replace(
      _prepared(experiment, built.teacher, taps, members, frozen), heard_with=names)


def _prepared(
    experiment: Experiment, module: nn.Module, taps: tuple[str, ...], members: tuple[str, ...],
    frozen: dict[str, Any],
) -> _Teacher:
  """A teacher that says quickly what it is asked, at `taps` and, for its heads, at `members`."""
  module, variables = experiment.prepare_teacher(module, frozen['teacher'], (*taps, *members))
  return _Teacher(module, taps, {**frozen, 'teacher': variables})
