"""The cost of a training step, counted in its traced program: FLOPs, and bytes of its arrays."""
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
# XLA has to store the results of these operations. It can fuse others into their consumers.
_STORED = (*_PRODUCTS, 'random_bits', 'sort', 'gather', 'scatter-add', 'scatter', 'cumsum')


@dataclasses.dataclass(frozen=True)
class Cost:
  """The cost of a program on one device.

  Attributes:
    flops: floating-point operations of convolutions and matrix products; a multiply-add counts as
      two.
    products: bytes of the results of convolutions and matrix products.
    largest: bytes of the largest array that XLA has to store.
    equations: number of operations in the program, to which the compile time is proportional.
  """

  flops: int = 0
  products: int = 0
  largest: int = 0
  equations: int = 0

  def __add__(self, other: 'Cost') -> 'Cost':
    return Cost(self.flops + other.flops, self.products + other.products,
                max(self.largest, other.largest), self.equations + other.equations)


def cost(function: Callable, *arguments: Any) -> Cost:
  """Returns the cost of a function, counted in its traced program; nothing is computed.

  Args:
    function: the function, which may use collectives over the axis of devices.
    *arguments: arrays or `jax.ShapeDtypeStruct`s.
  """
  return _traced(function, *arguments)[0]


def _traced(function: Callable, *arguments: Any) -> tuple[Cost, Any]:
  """Returns the cost of a function, and the shapes of its result."""
  program, result = jax.make_jaxpr(
      function, axis_env=[(devices.AXIS, devices.num_devices())], return_shape=True)(*arguments)
  return _cost(program.jaxpr), result


def of_signal(problem: Problem) -> tuple[Cost, TeacherSignal]:
  """Returns the cost of the teacher signal on a device in each step, and the signal's shapes."""
  def signal(frozen):
    return problem.task.signals.blank(frozen, _part(problem), problem.image_shape)

  once, shapes = _traced(signal, problem.task.frozen)
  return _repeated(once, problem.config.compute.accumulate), shapes


class SignalCosts:
  """Computes `of_signal` once for all steps whose teacher signal has the same source."""

  def __init__(self) -> None:
    self._known: dict[Hashable, tuple[Cost, TeacherSignal]] = {}

  def of(self, source: Hashable, problem: Problem) -> tuple[Cost, TeacherSignal]:
    """Returns `of_signal(problem)`; `source` is the `Step.signal_source` of the step."""
    if source is None:
      return of_signal(problem)
    key = source, problem.train.global_batch_size
    if key not in self._known:
      self._known[key] = of_signal(problem)
    return self._known[key]


def of_loss(problem: Problem, signal: TeacherSignal, *, gradient: bool) -> Cost:
  """Returns the cost of the loss, without its teacher signal, on a device in each step.

  Args:
    problem: the training problem of the step.
    signal: shapes of the teacher signal, from `of_signal`.
    gradient: whether to count the backward pass too.
  """
  collections = {name: tree for name, tree in problem.variables.items() if name != 'params'}

  def loss(params, collections, frozen, signal):
    return problem.blank_loss({'params': params, **collections}, frozen, signal, _part(problem))

  once = cost(jax.grad(loss) if gradient else loss, problem.variables['params'], collections,
              problem.task.frozen, signal)
  return _repeated(once, problem.config.compute.accumulate)


def _part(problem: Problem) -> int:
  """Returns the number of images that a device processes at a time."""
  per_device = problem.train.global_batch_size // devices.num_devices()
  return max(per_device // problem.config.compute.accumulate, 1)


def _repeated(once: Cost, turns: int) -> Cost:
  """Returns the cost of running a program several times, one after the other."""
  return dataclasses.replace(once, flops=turns * once.flops)


def size(tree: Any) -> int:
  """Returns the bytes of a tree of arrays or `jax.ShapeDtypeStruct`s."""
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _cost(program: core.Jaxpr) -> Cost:
  total = Cost()
  for equation in program.eqns:
    name, turns = equation.primitive.name, equation.params.get('length', 1)
    result = sum(_bytes(out) for out in equation.outvars)
    is_product = name in _PRODUCTS
    total += Cost(flops=_flops(equation) if is_product else 0,
                  products=result if is_product else 0,
                  largest=result if name in _STORED else 0, equations=1)
    for inner in _inner(equation):
      once = _cost(inner)
      total += dataclasses.replace(_repeated(once, turns), products=turns * once.products)
  return total


def _inner(equation: core.JaxprEqn) -> Iterator[core.Jaxpr]:
  """Yields the programs that an operation calls, such as the body of a loop."""
  for value in equation.params.values():
    for inner in value if isinstance(value, tuple | list) else (value,):
      if isinstance(inner, core.Jaxpr | core.ClosedJaxpr):
        yield inner.jaxpr if isinstance(inner, core.ClosedJaxpr) else inner


def _flops(equation: core.JaxprEqn) -> int:
  left, right, result = (_shape(variable) for variable in (*equation.invars[:2],
                                                           equation.outvars[0]))
  outputs = math.prod(result)
  if equation.primitive.name == 'dot_general':
    (contracted, _), _ = equation.params['dimension_numbers']
    return 2 * outputs * math.prod(left[axis] for axis in contracted)
  features = right[equation.params['dimension_numbers'].rhs_spec[0]]
  # The gradient of a strided convolution has zeros between its inputs, which cost nothing.
  return 2 * outputs * math.prod(right) // features // math.prod(equation.params['lhs_dilation'])


def _bytes(variable: Any) -> int:
  # The dtype of random keys has no itemsize.
  return math.prod(_shape(variable)) * getattr(variable.aval.dtype, 'itemsize', 0)


def _shape(variable: Any) -> tuple[int, ...]:
  return variable.aval.shape
