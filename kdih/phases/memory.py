"""Memory: what training takes at least, checked before it begins, and how running out is told."""
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


@dataclasses.dataclass(frozen=True)
class Need:
  """What a training step takes of a device at least, in bytes.

  Attributes:
    learnt: parameters and batch statistics, gradients, and what the optimizer keeps.
    frozen: variables of the teachers.
    images: the data set, where it stays on the device.
    cache: the device's part of it, where it lies there.
    largest: of the arrays that a step makes.
  """

  learnt: int
  frozen: int
  images: int
  cache: int
  largest: int

  @property
  def resident(self) -> int:
    """What stays from step to step."""
    return self.learnt + self.frozen + self.images + self.cache

  @property
  def total(self) -> int:
    """All of it."""
    return self.resident + self.largest


def of_device() -> int:
  """Returns the memory of a device, in bytes; CPUs share the host's evenly."""
  stats = [device.memory_stats() for device in jax.local_devices()]
  if all(found and 'bytes_limit' in found for found in stats):
    return min(found['bytes_limit'] for found in stats)
  return psutil.virtual_memory().total // jax.local_device_count()


def of_images(problem: Problem, splits: Iterable[str]) -> int:
  """Returns the bytes of these splits on a device, where they stay there."""
  if problem.config.data.loader != 'memory':
    return 0
  return sum(map(problem.data.splits.size, splits)) * math.prod(problem.image_shape)


def in_words(count: int) -> str:
  """Returns so many bytes as text, such as '1.25 GB'."""
  return f'{count / 1e9:.2f} GB' if count >= 1e9 else f'{count / 1e6:,.0f} MB'


def check(
    config: 'ml_collections.ConfigDict', built: Networks, splits: Splits, phases: Iterable[str]
) -> None:
  """Raises ConfigError where a phase cannot possibly fit into a device; computes nothing.

  Args:
    config: of the run.
    built: its networks.
    splits: of its data, of which nothing but the sizes is read.
    phases: those to be trained.
  """
  made = made_splits(built.spec, splits.size('train'), splits.size('test'))
  run = BlankRun(config, built, made, shapes=True)
  limit, signals = of_device(), step_cost.SignalCosts()
  for phase in phases:
    for step in run.steps(phase):
      problem = step.problem()
      asked, signal = signals.of(step.asks, problem)
      found = asked + step_cost.of_loss(problem, signal, gradient=False)
      need = least(run, step, problem, found)
      if need.total > limit:
        raise errors.ConfigError(_refusal(run, step, need, limit))


def least(run: BlankRun, step: Step, problem: Problem, found: Cost) -> Need:
  """Returns what a step takes of a device at least.

  Args:
    run: whose step it is.
    step: of a phase.
    problem: of the step.
    found: the cost of its loss and of its teachers.
  """
  params, train = problem.variables['params'], problem.train
  tx = optimizer.make_optimizer(train, optimizer.make_schedule(train, problem.duration))
  sizes = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params)]
  # XLA has all gradients at once on a CPU; elsewhere it may apply one before it makes the next.
  gradients = sum(sizes) if devices.on_cpu() else max(sizes, default=0)
  return Need(
      step_cost.size(problem.variables) + step_cost.size(jax.eval_shape(tx.init, params))
      + gradients, step_cost.size(problem.task.frozen),
      of_images(problem, SPLITS), run.table_bytes(step.cached) if step.cached else 0, found.largest)


def _refusal(run: BlankRun, step: Step, need: Need, limit: int) -> str:
  """Returns the line that says what does not fit, and what helps."""
  parts = {
      'what learns, with its gradients and optimizer': (need.learnt, _smaller(run, step)),
      'the frozen teacher': (need.frozen, _smaller_teacher(run)),
      'the images': (need.images, 'config.data.loader=streaming'),
      'the cache': (need.cache, 'config.compute.cache_place=host, or fewer views with '
                                'config.compute.cache=views:N'),
      'the largest array of a step': (need.largest, _fewer_images(run, step))}
  largest = max(parts, key=lambda name: parts[name][0])
  taken, remedy = parts[largest]
  has = 'whose share of the host is' if devices.on_cpu() else 'which has'
  return (f'{step.phase}: training takes at least {in_words(need.total)} of each device, {has} '
          f'{in_words(limit)}; {in_words(taken)} of that is {largest}; set {remedy}')


def _smaller(run: BlankRun, step: Step) -> str:
  role, method = step.phase.split('/')[0], _method(step)
  if role == 'heads':
    return _smaller_heads(run)
  beside = f', or another method than config.methods.{method}' if method else ''
  return f'config.{role}.name to a smaller model{beside}'


def _smaller_heads(run: BlankRun) -> str:
  pooled = 'config.heads.kind=gap, or ' if run.config.heads.kind == 'flatten' else ''
  return f'{pooled}config.heads.taps to fewer taps'


def _smaller_teacher(run: BlankRun) -> str:
  return f'config.teacher.name to a smaller model, or {_smaller_heads(run)}'


def _method(step: Step) -> str:
  """Returns the name of the method that a student's step is of, else ''."""
  role, _, rest = step.phase.partition('/')
  return rest.split('/')[0] if role == 'student' else ''


def _fewer_images(run: BlankRun, step: Step) -> str:
  """Returns what makes the arrays of a step smaller."""
  method = _method(step)
  remedies = []
  if method and run.config.methods[method].get('negatives'):
    remedies.append(f'config.methods.{method}.negatives to less')
  couples = method and run.built.methods[method].couples
  if not couples and _parts_save_memory():
    remedies.append(f'config.compute.accumulate={2 * run.config.compute.accumulate}')
  return ', or '.join([*remedies, f'config.{step.train}.global_batch_size to less'])


def _parts_save_memory() -> bool:
  """Returns whether to cut batches into parts helps; on a CPU the parts share little memory."""
  return not devices.on_cpu()


@contextlib.contextmanager
def told_in_a_line(phase: str) -> Iterator[None]:
  """Makes running out of memory a TrainingError that names the phase and what helps."""
  try:
    yield
  except (MemoryError, jax.errors.JaxRuntimeError) as error:
    if not _ran_out(error):
      raise
    role = phase.split('/')[0]
    parts = 'config.compute.accumulate=2, ' if _parts_save_memory() else ''
    pooled = ', config.heads.kind=gap' if role == 'heads' else ''
    kept = '' if role == 'teacher' else '; config.teacher.variables takes the trained teacher there'
    raise errors.TrainingError(
        f'{phase}: memory ran out ({errors.first_line(error)}); the same command goes on with '
        'config.compute.remat=True; if that does not do, train in another workdir with '
        f'{parts}a smaller config.{role}.train.global_batch_size{pooled}, or '
        f'on more devices{kept}') from error


def _ran_out(error: Exception) -> bool:
  said = str(error)
  return isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in said or 'Out of memory' in said
