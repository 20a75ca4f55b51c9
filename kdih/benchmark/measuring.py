"""Measures the times of several items in turns."""
import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence


@dataclasses.dataclass(frozen=True)
class Item:
  """A computation to measure.

  Attributes:
    name: the name of the item in the table.
    seconds: a function that makes a number of calls in a row and returns their time in seconds. It
      makes one more call before them, which may compile and is not timed.
    least: the smallest number of calls in a measurement.
  """

  name: str
  seconds: Callable[[int], float]
  least: int = 1


@dataclasses.dataclass(frozen=True)
class Times:
  """The seconds of one call in each measurement."""

  seconds: tuple[float, ...]

  @property
  def median(self) -> float:
    """Returns the median of all measurements, in seconds."""
    return statistics.median(self.seconds)

  @property
  def quartiles(self) -> tuple[float, float]:
    """Returns the first and the third quartile of all measurements, in seconds."""
    if len(self.seconds) == 1:
      return self.seconds * 2
    first, _, third = statistics.quantiles(self.seconds, method='inclusive')
    return first, third


def measure(items: Sequence[Item], runs: int, seconds: float = 0.5) -> dict[str, Times]:
  """Measures all items in turns, `runs` times.

  The noise of a busy machine then affects all items, and the ratios of their times are more
  reliable than the times.

  Args:
    items: the items.
    runs: the number of measurements of each item.
    seconds: the shortest duration of a measurement.

  Returns:
    {name of the item: its times}.
  """
  calls = {}
  for item in items:
    once = item.seconds(item.least) / item.least
    calls[item.name] = max(item.least, math.ceil(seconds / once))
  measured: dict[str, list[float]] = {item.name: [] for item in items}
  for _ in range(runs):
    for item in items:
      measured[item.name].append(item.seconds(calls[item.name]) / calls[item.name])
  return {name: Times(tuple(times)) for name, times in measured.items()}
