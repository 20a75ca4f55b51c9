"""What a training step costs, read off its traced program: FLOPs, and bytes of its arrays."""
import dataclasses
import math
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import jax
from jax.extend import core

from kdih.distillation.signal import TeacherSignal
from kdih.phases.problem import Problem
from kdih.runtime import devices

_PRODUCTS = ('conv_general_dilated', 'dot_general')
# What XLA has to lay out in memory: it can merge other operations into those that read them.
_LAID_OUT = (*_PRODUCTS, 'random_bits', 'sort', 'gather', 'scatter-add', 'scatter', 'cumsum')


@dataclasses.dataclass(frozen=True)
class Cost:
  """What a program costs on one device.

  Attributes:
    flops: of convolutions and products, a multiply-add counted as two.
    products: bytes of their results.
    largest: bytes of the largest array that has to be laid out in memory.
    equations: in the program, by which the time to compile it grows.
  """

  flops: int = 0
  products: int = 0
  largest: int = 0
  equations: int = 0

  def __add__(self, other: 'Cost') -> 'Cost':
    return Cost(self.flops + other.flops, self.products + other.products,
                max(self.largest, other.largest), self.equations + other.equations)


def cost(function: Callable, *arguments: Any) -> Cost:
  """Returns what a function costs, read off its traced program; nothing is computed.

  Args:
    function: it may speak over the axis of devices.
    *arguments: arrays or shapes.
  """
  return _traced(function, *arguments)[0]


def _traced(function: Callable, *arguments: Any) -> tuple[Cost, Any]:
  """Returns what a function costs, and the shapes of its result."""
  program, result = jax.make_jaxpr(
      function, axis_env=[(devices.AXIS, devices.num_devices())], return_shape=True)(*arguments)
  return _cost(program.jaxpr), result


def of_signal(problem: Problem) -> tuple[Cost, TeacherSignal]:
  """Returns what the teachers cost a device at each step, and the shapes of what they say."""
  def signal(frozen):
    return problem.task.signals.blank(frozen, _part(problem), problem.image_shape)

  found, shapes = _traced(signal, problem.task.frozen)
  return _times(found, problem.config.compute.accumulate), shapes


class SignalCosts:
  """As `of_signal`; what steps ask of the same teachers is traced for the first of them."""

  def __init__(self) -> None:
    self._known: dict[Hashable, tuple[Cost, TeacherSignal]] = {}

  def of(self, asks: Hashable, problem: Problem) -> tuple[Cost, TeacherSignal]:
    """Returns what `of_signal` does; `asks` says who is asked, None that nobody is."""
    if asks is None:
      return of_signal(problem)
    key = asks, problem.train.global_batch_size
    if key not in self._known:
      self._known[key] = of_signal(problem)
    return self._known[key]


def of_loss(problem: Problem, signal: TeacherSignal, *, gradient: bool) -> Cost:
  """Returns what the loss costs a device at each step, or its gradient.

  Args:
    problem: of the step.
    signal: shapes, from `of_signal`, whose cost is not counted here.
    gradient: whether to count the backward pass too.
  """
  collections = {name: tree for name, tree in problem.variables.items() if name != 'params'}

  def loss(params, collections, frozen, signal):
    return problem.blank_loss({'params': params, **collections}, frozen, signal, _part(problem))

  found = cost(jax.grad(loss) if gradient else loss, problem.variables['params'], collections,
               problem.task.frozen, signal)
  return _times(found, problem.config.compute.accumulate)


def _part(problem: Problem) -> int:
  """Returns how many images a device works on at a time."""
  share = problem.train.global_batch_size // devices.num_devices()
  return max(share // problem.config.compute.accumulate, 1)


def _times(found: Cost, turns: int) -> Cost:
  """Returns the cost of making the same several times, one after the other."""
  return dataclasses.replace(found, flops=turns * found.flops)


def size(tree: Any) -> int:
  """Returns the bytes of a tree of arrays or shapes."""
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _cost(program: core.Jaxpr) -> Cost:
  total = Cost()
  for equation in program.eqns:
    name, turns = equation.primitive.name, equation.params.get('length', 1)
    made = sum(_bytes(out) for out in equation.outvars)
    is_product = name in _PRODUCTS
    total += Cost(_flops(equation) if is_product else 0, made if is_product else 0,
                  made if name in _LAID_OUT else 0, 1)
    for inner in _inner(equation):
      found = _cost(inner)
      total += dataclasses.replace(_times(found, turns), products=turns * found.products)
  return total


def _inner(equation: core.JaxprEqn) -> Iterator[core.Jaxpr]:
  """Yields the programs that an operation calls."""
  for value in equation.params.values():
    for inner in value if isinstance(value, tuple | list) else (value,):
      if isinstance(inner, core.Jaxpr | core.ClosedJaxpr):
        yield inner.jaxpr if isinstance(inner, core.ClosedJaxpr) else inner


def _flops(equation: core.JaxprEqn) -> int:
  left, right, result = (_shape(variable) for variable in (*equation.invars[:2],
                                                           equation.outvars[0]))
  made = math.prod(result)
  if equation.primitive.name == 'dot_general':
    (contracted, _), _ = equation.params['dimension_numbers']
    return 2 * made * math.prod(left[axis] for axis in contracted)
  features = right[equation.params['dimension_numbers'].rhs_spec[0]]
  # A gradient of a strided convolution reads zeros between its inputs, which cost nothing.
  return 2 * made * math.prod(right) // features // math.prod(equation.params['lhs_dilation'])


def _bytes(variable: Any) -> int:
  # Keys of random numbers are of a type of their own, which has no size.
  return math.prod(_shape(variable)) * getattr(variable.aval.dtype, 'itemsize', 0)


def _shape(variable: Any) -> tuple[int, ...]:
  return variable.aval.shape
