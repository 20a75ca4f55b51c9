"""Times of several things, measured in turns."""
import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence


@dataclasses.dataclass(frozen=True)
class Item:
  """Something to measure.

  Attributes:
    name: of it.
    seconds: of so many calls in a row, all that they compute included; a call before them, which
      may compile, does not count.
    least: calls of one measurement.
  """

  name: str
  seconds: Callable[[int], float]
  least: int = 1


@dataclasses.dataclass(frozen=True)
class Times:
  """Seconds of one call, by measurement."""

  seconds: tuple[float, ...]

  @property
  def median(self) -> float:
    """Of all measurements."""
    return statistics.median(self.seconds)

  @property
  def quartiles(self) -> tuple[float, float]:
    """The first and the third."""
    if len(self.seconds) == 1:
      return self.seconds * 2
    first, _, third = statistics.quantiles(self.seconds, method='inclusive')
    return first, third


def measure(items: Sequence[Item], runs: int, seconds: float = 0.5) -> dict[str, Times]:
  """Measures every item `runs` times: all of them, then all again, and so on.

  So the noise of a busy machine meets all of them, and their ratios say more than their times.
  One measurement is of as many calls as take `seconds`, at least.
  """
  calls = {}
  for item in items:
    once = item.seconds(item.least) / item.least
    calls[item.name] = max(item.least, math.ceil(seconds / once))
  found: dict[str, list[float]] = {item.name: [] for item in items}
  for _ in range(runs):
    for item in items:
      found[item.name].append(item.seconds(calls[item.name]) / calls[item.name])
  return {name: Times(tuple(times)) for name, times in found.items()}
