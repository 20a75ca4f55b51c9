"""The work of a program and the peak performance of the device, which bound its time."""
import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp

_REPEATS = 3


@dataclasses.dataclass(frozen=True)
class Ceilings:
  """The measured peak performance of one device, while the others are idle.

  Attributes:
    bytes_per_second: memory bandwidth, read and written, measured by adding 1 to a large array.
    flops_per_second: arithmetic throughput, measured by a product of two large square matrices in
      the precision of the models.
  """

  bytes_per_second: float
  flops_per_second: float


@dataclasses.dataclass(frozen=True)
class Work:
  """The work of one call of a program on each device, by XLA's cost analysis.

  Attributes:
    flops: floating-point operations; a multiply-add counts as two.
    bytes: bytes that the operations of the compiled program read and write.
    memory: bytes of temporary buffers; None if XLA does not report them.
  """

  flops: float
  bytes: float
  memory: int | None

  def seconds(self, ceilings: Ceilings) -> float:
    """Returns the lower bound of the time of a call in seconds, by the roofline model."""
    return max(self.flops / ceilings.flops_per_second, self.bytes / ceilings.bytes_per_second)

  def bound(self, ceilings: Ceilings) -> str:
    """Returns 'compute' or 'memory', whichever limits the time."""
    by_compute = self.flops / ceilings.flops_per_second
    return 'compute' if by_compute > self.bytes / ceilings.bytes_per_second else 'memory'


def work(function: Any, *arguments: Any) -> Work:
  """Returns the work of a jitted or pmapped function; compiles it, but does not run it."""
  lowered = function.lower(*arguments)
  compiled = lowered.compile()
  costs, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
  # The compiled program may call convolutions of a library, whose FLOPs XLA does not count. The
  # lowered program contains no such calls, but not every platform analyses it.
  before = lowered.cost_analysis() or {}
  return Work(max(costs.get('flops', 0.0), before.get('flops', 0.0)),
              costs.get('bytes accessed', 0.0),
              memory.temp_size_in_bytes if memory else None)


def measure_ceilings(precision: str) -> Ceilings:
  """Measures the peak performance of the first device; `precision` is the dtype of the product."""
  on_cpu = jax.default_backend() == 'cpu'
  side = 2048 if on_cpu else 8192  # Rows and columns of the matrices.
  size = 2**28 if on_cpu else 2**30  # Bytes of the array.
  matrix = jnp.full((side, side), 1 / side, jnp.dtype(precision))
  product = jax.jit(lambda x, y: x @ y, donate_argnums=0)
  add = jax.jit(lambda x: x + 1, donate_argnums=0)
  return Ceilings(2 * size / _best(add, jnp.zeros(size // 4, jnp.float32)),
                  2 * side**3 / _best(product, matrix, jnp.array(matrix)))


def _best(function: Any, first: jax.Array, *others: jax.Array) -> float:
  """Returns the seconds of the fastest call of a function whose argument is its own result."""
  first, best = jax.block_until_ready(function(first, *others)), float('inf')
  for _ in range(_REPEATS):
    begun = time.perf_counter()
    for _ in range(_REPEATS):
      first = function(first, *others)
    jax.block_until_ready(first)
    best = min(best, (time.perf_counter() - begun) / _REPEATS)
  return best
