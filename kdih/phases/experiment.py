"""What the phases of a run share: data, networks, folders, and how each trains and measures."""
import dataclasses
import logging
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from kdih.cohort.members import FINAL, MEAN
from kdih.config import protocol
from kdih.data.splits import Splits
from kdih.models import cost
from kdih.phases import exported_variables, identity as identity_lib, resume
from kdih.phases.identity import Identity
from kdih.phases.networks import Networks
from kdih.phases.problem import Problem, TrainingData
from kdih.runtime import devices
from kdih.runtime.files import write_atomically
from kdih.runtime.workdir import Workdir, resolved
from kdih.training import checkpoints as checkpoints_lib, loop, steps_per_call
from kdih.training.evaluation import Evaluator, Metrics
from kdih.training.loop_schedule import LoopSchedule
from kdih.training.task import Task
from kdih.training.together import Students

if TYPE_CHECKING:
  import ml_collections

logger = logging.getLogger(__name__)

_FIRST_PROFILED = 10  # Updates: by then all is compiled, but for the last calls.


@dataclasses.dataclass(frozen=True)
class PhaseOutcome:
  """What a phase ended with, and what that took over all its runs.

  Attributes:
    last: variables after the last step.
    best: variables of the best checkpoint by validation accuracy; what is exported.
    steps: updates made.
    seconds: wall time.
    examples_per_second: while training.
    rewinds: how often a loss that was not finite halved the learning rate.
  """

  last: Any
  best: Any
  steps: int = 0
  seconds: float = 0.0
  examples_per_second: float = 0.0
  rewinds: int = 0


class Experiment:
  """A run in progress.

  Args:
    config: checked.
    networks: built from it.
    workdir: checked; `pipeline.run` opens it.
    splits: the 'train' and 'test' split.
    teachers: the workdir that holds teacher and heads; `workdir` itself unless given.
    identity: what it is made of; None where nothing is trained.
  """

  def __init__(self, config: 'ml_collections.ConfigDict', networks: Networks, workdir: Workdir,
               splits: Splits, teachers: Workdir | None = None,
               identity: Identity | None = None):
    if splits.classes != networks.spec.classes:  # TFDS learns some names while it prepares data.
      networks = dataclasses.replace(
          networks, spec=dataclasses.replace(networks.spec, classes=splits.classes))
    self.config, self.networks, self.workdir = config, networks, workdir
    self.teachers = teachers or workdir
    self.identity = identity
    self.data = TrainingData(config, splits)
    self._validated: tuple[Task, Evaluator] | None = None

  def open(self) -> None:
    """Makes the workdir and writes down what the run is made of, as far as it is known by now.

    Raises:
      ConfigError: its teacher was done anew, and has become another one.
    """
    assert self.identity, 'a run that trains has an identity'
    teacher, accepted = identity_lib.of_teacher(self.teachers), self.identity.accepted
    if teacher != self.identity.teacher:
      accepted += tuple(resume.check_teacher(self.workdir, teacher, self.config.accept))
    self.identity = dataclasses.replace(self.identity, teacher=teacher, accepted=accepted)
    identity_lib.record(self.workdir, self.identity, self.config)

  @property
  def described_data(self) -> dict[str, Any]:
    """What exported variables say of their data: its fields, shape, classes and content."""
    spec = self.networks.spec
    return {**protocol.described(resolved(self.config)), 'image_shape': list(spec.image_shape),
            'classes': list(spec.classes) or None,
            'content': self.identity.data if self.identity else None}

  def key(self, role: int) -> jax.Array:
    """Returns the key that initialises a role.

    0 is the teacher, 1 the heads, 2 the student, 3 a method's own modules, from 4 on assistants.
    """
    return jax.random.fold_in(jax.random.key(self.config.seed), role)

  def _validator(self, task: Task) -> Evaluator | None:
    """Returns that of the validation split: one for training and `measure`, to compile it once."""
    if not len(self.data.validation_subset):
      return None
    if self._validated is None or self._validated[0] is not task:
      self._validated = (task, self._evaluator(task, 'train', self.data.validation_subset))
    return self._validated[1]

  def _evaluator(self, task: Task, split: str, subset: np.ndarray) -> Evaluator:
    return Evaluator(task=task, loader=self.data.splits.loader(split), subset=subset,
                     preprocess=self.data.preprocess,
                     batch_size=self.config.data.eval_global_batch_size,
                     num_classes=self.networks.spec.num_classes)

  def train(self, phase: str, problem: Problem) -> PhaseOutcome:
    """Trains what a problem starts from, or resumes from its last checkpoint if there is one."""
    learner = self.learner(phase, problem, problem.variables)
    outcome = loop.train(self.program(phase, problem), learner)
    best, _ = learner.checkpoints.restore_best()
    return PhaseOutcome(
        devices.to_host(outcome.state.variables), best.variables, int(outcome.state.step),
        outcome.seconds, outcome.examples_per_second, outcome.rewinds)

  def learner(self, phase: str, problem: Problem, variables: Any) -> loop.Learner:
    """Returns what `program` trains, from these variables of its seed on, with its checkpoints."""
    folder, initial = self.workdir.phase(phase), problem.state(variables, self.config.seed)
    checkpoints = checkpoints_lib.Checkpoints(folder / 'checkpoints', initial)
    return loop.Learner(state=initial, checkpoints=checkpoints, directory=folder, phase=phase)

  def program(
      self, phase: str, problem: Problem, students: Students | None = None
  ) -> loop.TrainProgram:
    """Returns how a phase trains: one learner, or several as one."""
    validator = self._validator(problem.task)

    def evaluate(variables, frozen):
      return _averages(validator(variables, frozen)) if validator else None

    hooks = self._hooks(self.workdir.phase(phase), problem.schedule(phase))
    return problem.program(phase, evaluate, hooks, students)

  def _hooks(self, folder: Any, schedule: LoopSchedule) -> tuple:
    if not self.config.profile:
      return ()
    from clu import periodic_actions  # Imports TensorFlow, which takes seconds.
    first = steps_per_call.end_from(_FIRST_PROFILED, schedule.evaluate_every, schedule.per_call)
    return (periodic_actions.Profile(
        logdir=str(folder), num_profile_steps=5, profile_duration_ms=None, first_profile=first),)

  def predict(
      self, task: Task, variables: Any, split: str
  ) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns logits of every classifier, and labels, of the 'validation' or 'test' images."""
    subset = (self.data.validation_subset if split == 'validation'
              else np.arange(self.data.splits.size('test'), dtype=np.int32))
    evaluator = self._evaluator(task, 'test' if split == 'test' else 'train', subset)
    return evaluator.predict(variables, task.frozen)

  def measure(
      self, task: Task, outcome: PhaseOutcome, test_task: Task | None = None
  ) -> dict[str, dict[str, Any]]:
    """Returns {classifier: {'val', 'test_last', 'test_best_val': {'top1', 'top5', 'loss'}}}.

    `val` is that of the best checkpoint, None without a validation split. The test split is read
    at the end of a phase alone, here and by `predict`; `test_task` may predict more there than
    `task` does.
    """
    everything = np.arange(self.data.splits.size('test'), dtype=np.int32)
    validate, test = self._validator(task), self._evaluator(test_task or task, 'test', everything)
    val = validate(outcome.best, task.frozen) if validate else {}
    frozen = (test_task or task).frozen
    last, best = test(outcome.last, frozen), test(outcome.best, frozen)
    return {name: {'val': val.get(name), 'test_last': last[name], 'test_best_val': best[name]}
            for name in last}


def _averages(metrics: Metrics) -> dict[str, float]:
  """Returns the mean over what is trained, without the teacher and the mean of the cohort."""
  learnt = [values for name, values in metrics.items() if name not in (FINAL, MEAN)]
  return {key: sum(values[key] for values in learnt) / len(learnt)
          for key in ('top1', 'loss')}


def overview(experiment: Experiment, phase: str, model: str, variables: Any) -> None:
  """Says how large what is to be trained is, and writes a table of its parameters."""
  from clu import parameter_overview  # Takes long to import.

  path, params = experiment.workdir.phase(phase) / 'parameters.txt', variables['params']
  write_atomically(path, parameter_overview.get_parameter_overview(params) + '\n')
  logger.info(f'{phase}: {model}, {cost.count_parameters(params):,} parameters, listed in {path}')


def _taught_by(experiment: Experiment, phase: str) -> str:
  """Returns who teaches in a phase, as `Method.taught_by`."""
  if phase.startswith('student/'):
    return experiment.networks.methods[phase.split('/')[1]].taught_by
  return {'teacher': 'labels', 'heads': 'teacher'}[phase]


def finish(
    experiment: Experiment, phase: str, outcome: PhaseOutcome, meta: dict, report: dict
) -> dict:
  """Exports the best variables, then writes the result: a finished phase has both.

  Args:
    experiment: the run.
    phase: its name.
    outcome: what it ended with.
    meta: what the exported variables are of; what its 'data' holds goes before the experiment's.
    report: what was measured: 'val', 'test_last', 'test_best_val', and more.
  """
  made_of: dict[str, Any] = {}
  if experiment.identity:
    made_of = {'protocol': protocol.averaged(resolved(experiment.config)),
               'identity': experiment.identity.of_phase(phase, _taught_by(experiment, phase)),
               'accepted': list(experiment.identity.accepted)}
  meta = {**meta, 'data': {**experiment.described_data, **meta.get('data', {})},
          'val': report['val'], 'test_best_val': report['test_best_val']}
  fingerprint = exported_variables.save(
      experiment.workdir.phase(phase) / 'variables', outcome.best, meta)
  return experiment.workdir.finish(phase, {
      **report,
      'parameters': cost.count_parameters(outcome.best['params']),
      'fingerprint': fingerprint,
      'seed': experiment.config.seed,
      'steps': outcome.steps,
      'seconds': outcome.seconds,
      'examples_per_second': outcome.examples_per_second,
      'rewinds': outcome.rewinds,
      **made_of,
  })
