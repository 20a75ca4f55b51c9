"""What a program has to do, and what the device can do."""
import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp

_REPEATS = 3


@dataclasses.dataclass(frozen=True)
class Ceilings:
  """The best that one device did, while the others rested.

  Attributes:
    bytes_per_second: read and written, by adding one to a large array in its place.
    flops_per_second: of a product of two large square matrices, in the precision of the models.
  """

  bytes_per_second: float
  flops_per_second: float


@dataclasses.dataclass(frozen=True)
class Work:
  """What one call of a program has to do on each device, by XLA's cost analysis.

  Attributes:
    flops: a multiply-add counted as two.
    bytes: read and written by the compiled program's operations.
    memory: bytes of its temporary buffers; None where XLA does not tell.
  """

  flops: float
  bytes: float
  memory: int | None

  def seconds(self, ceilings: Ceilings) -> float:
    """The least time that it could take: the roofline."""
    return max(self.flops / ceilings.flops_per_second, self.bytes / ceilings.bytes_per_second)

  def bound(self, ceilings: Ceilings) -> str:
    """'compute' or 'memory', whichever takes longer."""
    by_compute = self.flops / ceilings.flops_per_second
    return 'compute' if by_compute > self.bytes / ceilings.bytes_per_second else 'memory'


def work(function: Any, *arguments: Any) -> Work:
  """Of a jitted or pmapped function; compiles it, and runs nothing."""
  lowered = function.lower(*arguments)
  compiled = lowered.compile()
  costs, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
  # Of a library's convolution, which the compiled program may call, XLA does not know the FLOPs.
  # What is not compiled yet has none, but not every platform analyses that.
  before = lowered.cost_analysis() or {}
  return Work(max(costs.get('flops', 0.0), before.get('flops', 0.0)),
              costs.get('bytes accessed', 0.0),
              memory.temp_size_in_bytes if memory else None)


def measure_ceilings(precision: str) -> Ceilings:
  """Measures both on the first device; `precision` is that of the product."""
  on_cpu = jax.default_backend() == 'cpu'
  side = 2048 if on_cpu else 8192  # Of the matrices.
  size = 2**28 if on_cpu else 2**30  # Bytes that are copied.
  matrix = jnp.full((side, side), 1 / side, jnp.dtype(precision))
  product = jax.jit(lambda x, y: x @ y, donate_argnums=0)
  add = jax.jit(lambda x: x + 1, donate_argnums=0)
  return Ceilings(2 * size / _best(add, jnp.zeros(size // 4, jnp.float32)),
                  2 * side**3 / _best(product, matrix, jnp.array(matrix)))


def _best(function: Any, first: jax.Array, *others: jax.Array) -> float:
  """Seconds of the fastest call of a function that takes its own result."""
  first, best = jax.block_until_ready(function(first, *others)), float('inf')
  for _ in range(_REPEATS):
    begun = time.perf_counter()
    for _ in range(_REPEATS):
      first = function(first, *others)
    jax.block_until_ready(first)
    best = min(best, (time.perf_counter() - begun) / _REPEATS)
  return best
