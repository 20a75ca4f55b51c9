"""Memory: checks before training that a phase can fit into a device, and reports running out."""
import contextlib
import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import jax
import psutil

from kdih import errors
from kdih.data.made import made_splits
from kdih.data.spec import SPLITS
from kdih.data.splits import Splits
from kdih.phases import step_cost
from kdih.phases.blank import BlankRun, Step
from kdih.phases.networks import Networks
from kdih.phases.problem import Problem
from kdih.phases.step_cost import Cost
from kdih.runtime import devices
from kdih.training import optimizer

if TYPE_CHECKING:
  import ml_collections


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryNeed:
  """A lower bound of the memory that a training step needs on each device, in bytes.

  Attributes:
    trained: parameters, batch statistics, gradients and optimizer state.
    frozen: variables of the teachers.
    images: the data set; 0 if it is not kept on the device.
    cache: the device's slice of the teacher cache; 0 if the cache is elsewhere.
    largest: the largest array that the step computes.
  """

  trained: int
  frozen: int
  images: int
  cache: int
  largest: int

  @property
  def resident(self) -> int:
    """Returns the bytes that stay allocated between steps."""
    return self.trained + self.frozen + self.images + self.cache

  @property
  def total(self) -> int:
    """Returns the sum of all parts."""
    return self.resident + self.largest


def of_device() -> int:
  """Returns the memory of a device in bytes; CPU devices share the memory of the host equally."""
  devices_stats = [device.memory_stats() for device in jax.local_devices()]
  if all(stats and 'bytes_limit' in stats for stats in devices_stats):
    return min(stats['bytes_limit'] for stats in devices_stats)
  return psutil.virtual_memory().total // jax.local_device_count()


def of_images(problem: Problem, splits: Iterable[str]) -> int:
  """Returns the bytes of these splits on a device; 0 if the loader does not keep them there."""
  if problem.config.data.loader != 'memory':
    return 0
  return sum(map(problem.data.splits.size, splits)) * math.prod(problem.image_shape)


def in_words(count: int) -> str:
  """Returns a number of bytes as text, such as '1.25 GB'."""
  return f'{count / 1e9:.2f} GB' if count >= 1e9 else f'{count / 1e6:,.0f} MB'


def check(
    config: 'ml_collections.ConfigDict', built: Networks, splits: Splits, phases: Iterable[str]
) -> None:
  """Checks that each phase can fit into the memory of a device; computes nothing.

  Args:
    config: the config of the run.
    built: the networks of the run.
    splits: the data of the run; only the sizes are read.
    phases: the names of the phases that will be trained.

  Raises:
    ConfigError: the lower bound of what a phase needs is more than a device has.
  """
  made = made_splits(built.spec, splits.size('train'), splits.size('test'))
  run = BlankRun(config, built, made, shapes=True)
  limit, signals = of_device(), step_cost.SignalCosts()
  for phase in phases:
    for step in run.steps(phase):
      problem = step.problem()
      teacher_cost, signal = signals.of(step.signal_source, problem)
      cost = teacher_cost + step_cost.of_loss(problem, signal, gradient=False)
      need = least(run, step, problem, cost)
      if need.total > limit:
        raise errors.ConfigError(_refusal(run, step, need, limit))


def least(run: BlankRun, step: Step, problem: Problem, cost: Cost) -> MemoryNeed:
  """Returns a lower bound of the memory that a step needs on each device.

  Args:
    run: the run.
    step: the step.
    problem: the training problem of the step.
    cost: the cost of the teachers and of the loss.
  """
  params, train = problem.variables['params'], problem.train
  tx = optimizer.make_optimizer(train, optimizer.make_schedule(train, problem.duration))
  sizes = [step_cost.size(leaf) for leaf in jax.tree.leaves(params)]
  # On a CPU, XLA keeps all gradients at once. Elsewhere it may apply one before the next is there.
  gradients = sum(sizes) if devices.on_cpu() else max(sizes, default=0)
  return MemoryNeed(
      trained=step_cost.size(problem.variables)
      + step_cost.size(jax.eval_shape(tx.init, params)) + gradients,
      frozen=step_cost.size(problem.task.frozen), images=of_images(problem, SPLITS),
      cache=run.table_bytes(step.cached) if step.cached else 0, largest=cost.largest)


def _refusal(run: BlankRun, step: Step, need: MemoryNeed, limit: int) -> str:
  """Returns the message that names the largest part of the memory and the settings to change."""
  parts = {
      'the trained parameters, their gradients and the optimizer state': (
          need.trained, _smaller(run, step)),
      'the frozen teacher': (need.frozen, _smaller_teacher(run)),
      'the images': (need.images, 'config.data.loader=streaming'),
      'the teacher cache': (need.cache, 'config.compute.cache_place=host, or fewer views with '
                                        'config.compute.cache=views:N'),
      'the largest array of a step': (need.largest, _fewer_images(run, step))}
  largest = max(parts, key=lambda name: parts[name][0])
  taken, remedy = parts[largest]
  memory = 'an equal part of the host memory' if devices.on_cpu() else 'the memory of a device'
  return (f'{step.phase}: training needs at least {in_words(need.total)} on each device, but '
          f'{memory} is {in_words(limit)}; the largest part is {largest} ({in_words(taken)}); set '
          f'{remedy}')


def _smaller(run: BlankRun, step: Step) -> str:
  role, method = step.phase.split('/')[0], _method(step)
  if role == 'heads':
    return _smaller_heads(run)
  or_without = f', or config.student.methods without {method}' if method else ''
  return f'config.{role}.name to a smaller model{or_without}'


def _smaller_heads(run: BlankRun) -> str:
  pooled = 'config.heads.kind=gap, or ' if run.config.heads.kind == 'flatten' else ''
  return f'{pooled}config.heads.taps to fewer taps'


def _smaller_teacher(run: BlankRun) -> str:
  return f'config.teacher.name to a smaller model, or {_smaller_heads(run)}'


def _method(step: Step) -> str:
  """Returns the method by which a student's step trains; '' if the step trains no student."""
  role, _, rest = step.phase.partition('/')
  return rest.split('/')[0] if role == 'student' else ''


def _fewer_images(run: BlankRun, step: Step) -> str:
  """Returns the settings that make the arrays of a step smaller."""
  method = _method(step)
  remedies = []
  if method and run.config.methods[method].get('negatives'):
    remedies.append(f'config.methods.{method}.negatives to less')
  couples = method and run.built.methods[method].couples
  if not couples and _parts_save_memory():
    remedies.append(f'config.compute.accumulate={2 * run.config.compute.accumulate}')
  return ', or '.join([*remedies, f'config.{step.train}.global_batch_size to less'])


def _parts_save_memory() -> bool:
  """Returns whether `config.compute.accumulate` saves memory; on a CPU it saves little."""
  return not devices.on_cpu()


@contextlib.contextmanager
def reported_in_one_line(phase: str) -> Iterator[None]:
  """Turns running out of memory into a TrainingError that names the phase and the remedy."""
  try:
    yield
  except (MemoryError, jax.errors.JaxRuntimeError) as error:
    if not _ran_out(error):
      raise
    role = phase.split('/')[0]
    parts = 'config.compute.accumulate=2, ' if _parts_save_memory() else ''
    pooled = ', config.heads.kind=gap' if role == 'heads' else ''
    reuse = ('' if role == 'teacher' else
             '; set config.teacher.variables there to reuse the trained teacher')
    raise errors.TrainingError(
        f'{phase}: memory ran out ({errors.first_line(error)}); run the same command again with '
        '--config.compute.remat=True to resume; if that is not enough, train in another workdir '
        f'with {parts}a smaller config.{role}.train.global_batch_size{pooled}, or on more devices'
        f'{reuse}') from error


def _ran_out(error: Exception) -> bool:
  text = str(error)
  return isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in text or 'Out of memory' in text
