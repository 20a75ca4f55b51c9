"""The state that the phases of a run share, and how every phase trains, measures and finishes."""
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

_FIRST_PROFILED = 10  # Updates. By then the step is compiled, except for the last, shorter calls.


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhaseOutcome:
  """The variables that a phase ended with, and the cost of its training over all resumed runs.

  Attributes:
    last: variables after the last step.
    best: variables with the best validation accuracy, which are exported.
    steps: number of updates.
    seconds: wall time.
    examples_per_second: throughput of the training loop.
    rewinds: how often a loss that was not finite halved the learning rate.
    best_lost: {'step', 'top1'} of better variables whose files were damaged, or None.
  """

  last: Any
  best: Any
  steps: int = 0
  seconds: float = 0.0
  examples_per_second: float = 0.0
  rewinds: int = 0
  best_lost: dict[str, Any] | None = None


class Experiment:
  """A run in progress.

  Args:
    config: the checked config.
    networks: the networks, built from the config.
    workdir: the checked workdir, which `pipeline.run` opens.
    splits: the 'train' and 'test' splits.
    teachers: the workdir that holds teacher and heads; `workdir` by default.
    identity: the identity of the run; None if the run does not train.
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
    """Creates the workdir and records the identity of the run, as far as it is known by now.

    Under the lock of the manifest it checks again that the run can resume: another command may have
    begun the run since the first check.

    Raises:
      ConfigError: another command has begun the run with another config or identity, or the teacher
        was trained again, and its variables have changed.
      FileError, UnreadableError: a file of the workdir is damaged, or cannot be read now.
    """
    assert self.identity, 'a run that trains has an identity'
    now = dataclasses.replace(self.identity, teacher=identity_lib.of_teacher(self.teachers))
    with self.workdir.locked_manifest():
      self.identity = resume.check_again(self.workdir, now, resolved(self.config))
      identity_lib.record(self.workdir, self.identity, self.config)

  @property
  def described_data(self) -> dict[str, Any]:
    """Returns the description of the data that is stored with exported variables.

    It holds config fields, the shape of an image, the names of the classes, and the content.
    """
    spec = self.networks.spec
    return {**protocol.described(resolved(self.config)), 'image_shape': list(spec.image_shape),
            'classes': list(spec.classes) or None,
            'content': self.identity.data if self.identity else None}

  def key(self, role: int) -> jax.Array:
    """Returns the key that initialises a role.

    Args:
      role: 0 is the teacher, 1 the heads, 2 the student, 3 the method's own modules, 4 and above
        the assistants.
    """
    return jax.random.fold_in(jax.random.key(self.config.seed), role)

  def _validator(self, task: Task) -> Evaluator | None:
    """Returns the evaluator of the validation split, or None if there is no such split.

    Training and `measure` share one evaluator, which is then compiled once.
    """
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
    """Trains the variables of a problem, or resumes from the last checkpoint if there is one."""
    learner = self.learner(phase, problem, problem.variables)
    outcome = loop.train(self.program(phase, problem), learner)
    best = learner.checkpoints.restore_best()
    return PhaseOutcome(
        last=devices.to_host(outcome.state.variables), best=best.variables, best_lost=best.lost,
        steps=int(outcome.state.step), seconds=outcome.seconds,
        examples_per_second=outcome.examples_per_second, rewinds=outcome.rewinds)

  def learner(self, phase: str, problem: Problem, variables: Any) -> loop.Learner:
    """Returns the learner of a phase: its initial state, from these variables and the seed of the
    run, its folder and its checkpoints."""
    folder, initial = self.workdir.phase(phase), problem.state(variables, self.config.seed)
    checkpoints = checkpoints_lib.Checkpoints(folder / 'checkpoints', initial)
    return loop.Learner(state=initial, checkpoints=checkpoints, directory=folder, phase=phase)

  def program(
      self, phase: str, problem: Problem, students: Students | None = None
  ) -> loop.TrainProgram:
    """Returns the training program of a phase, for one learner or for several together."""
    validator = self._validator(problem.task)

    def evaluate(variables, frozen):
      return _averages(validator(variables, frozen)) if validator else None

    hooks = self._hooks(self.workdir.phase(phase), problem.schedule(phase))
    return problem.program(phase, evaluate, hooks, students)

  def _hooks(self, folder: Any, schedule: LoopSchedule) -> tuple:
    if not self.config.profile:
      return ()
    from clu import periodic_actions  # Imported here, because it imports TensorFlow for seconds.
    first = steps_per_call.end_from(_FIRST_PROFILED, schedule.evaluate_every, schedule.per_call)
    return (periodic_actions.Profile(
        logdir=str(folder), num_profile_steps=5, profile_duration_ms=None, first_profile=first),)

  def predict(
      self, task: Task, variables: Any, split: str
  ) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns ({classifier: logits}, labels) of the images of the 'validation' or 'test' split."""
    subset = (self.data.validation_subset if split == 'validation'
              else np.arange(self.data.splits.size('test'), dtype=np.int32))
    evaluator = self._evaluator(task, 'test' if split == 'test' else 'train', subset)
    return evaluator.predict(variables, task.frozen)

  def measure(
      self, task: Task, outcome: PhaseOutcome, test_task: Task | None = None
  ) -> dict[str, dict[str, Any]]:
    """Measures the accuracy and the loss of every classifier.

    The test split is read only at the end of a phase, here and by `predict`.

    Args:
      task: the task that was trained.
      outcome: the variables that it ended with.
      test_task: predicts on the test split; `task` by default.

    Returns:
      {classifier: {'val', 'test_last', 'test_best_val': {'top1', 'top5', 'loss'}}}. 'val' and
      'test_best_val' are measured with the best checkpoint, 'test_last' with the last variables.
      'val' is None if there is no validation split.
    """
    everything = np.arange(self.data.splits.size('test'), dtype=np.int32)
    validate, test = self._validator(task), self._evaluator(test_task or task, 'test', everything)
    val = validate(outcome.best, task.frozen) if validate else {}
    frozen = (test_task or task).frozen
    last, best = test(outcome.last, frozen), test(outcome.best, frozen)
    return {name: {'val': val.get(name), 'test_last': last[name], 'test_best_val': best[name]}
            for name in last}


def _averages(metrics: Metrics) -> dict[str, float]:
  """Returns the mean metrics of the trained classifiers.

  The teacher's classifier and the mean of the cohort are not among them.
  """
  trained = [values for name, values in metrics.items() if name not in (FINAL, MEAN)]
  return {key: sum(values[key] for values in trained) / len(trained)
          for key in ('top1', 'loss')}


def overview(experiment: Experiment, phase: str, model: str, variables: Any) -> None:
  """Logs the number of parameters to be trained, and writes a table of them to the workdir."""
  from clu import parameter_overview  # Imported here, because it imports TensorFlow for seconds.

  path, params = experiment.workdir.phase(phase) / 'parameters.txt', variables['params']
  write_atomically(path, parameter_overview.get_parameter_overview(params) + '\n')
  logger.info(f'{phase}: {model}, {cost.count_parameters(params):,} parameters (see {path})')


def _taught_by(experiment: Experiment, phase: str) -> str:
  """Returns the teachers of a phase, as `Method.taught_by` names them."""
  if phase.startswith('student/'):
    return experiment.networks.methods[phase.split('/')[1]].taught_by
  return {'teacher': 'labels', 'heads': 'teacher'}[phase]


def finish(
    experiment: Experiment, phase: str, outcome: PhaseOutcome, meta: dict, report: dict
) -> dict:
  """Exports the best variables, then writes the result and returns it.

  Args:
    experiment: the run.
    phase: the name of the phase.
    outcome: the variables that the phase ended with.
    meta: describes the exported variables; entries of its 'data' override those of the experiment.
    report: the measurements: 'val', 'test_last', 'test_best_val', and others.
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
      **({'best_lost': outcome.best_lost} if outcome.best_lost else {}),
      **made_of,
  })
