"""Calls of a compiled program that makes several updates: their sizes and their feeds."""
import collections
import itertools
from collections.abc import Iterable, Iterator

import jax
import numpy as np

from kdih.runtime import devices

Feed = dict[str, np.ndarray]


def per_call(requested: int, log_every: int, streaming: bool) -> int:
  """Returns the largest number of updates in one call.

  If none is requested, it is 1 on a CPU, where XLA computes a convolution in a loop slowly, and
  with a streaming loader, which would have to hold all feeds of a call at once. Otherwise it is the
  number of updates between two log lines.

  Args:
    requested: `config.compute.steps_per_call`; 0 for none.
    log_every: updates between two log lines.
    streaming: whether the loader streams the images.
  """
  return requested or (1 if devices.on_cpu() or streaming else log_every)


def sizes(start: int, stop: int, every: int, most: int) -> Iterator[int]:
  """Yields the number of updates in each call from update `start` to update `stop`.

  Calls end at every multiple of `every`, and after every `most` updates between two multiples. The
  ends do not depend on `start`: a resumed run makes the same calls, and few sizes are compiled.
  """
  while start < stop:
    size = min(most - start % every % most, every - start % every, stop - start)
    yield size
    start += size


def end_from(number: int, every: int, most: int) -> int:
  """Returns the first update from `number` on with which a call ends; see `sizes`."""
  return next(end for end in itertools.accumulate(sizes(0, number + every, every, most))
              if end >= number)


def stacked(feeds: Iterator[Feed], numbers: Iterable[int]) -> Iterator[Feed]:
  """Yields the feed of each call, arrays [devices, updates, ...].

  Args:
    feeds: the feeds of the updates, arrays [devices, ...].
    numbers: number of updates in each call.
  """
  for number in numbers:
    call = [next(feeds) for _ in range(number)]
    if number == 1:  # Avoids a copy of an array that may hold a batch of images.
      yield {name: array[:, None] for name, array in call[0].items()}
    else:
      yield {name: np.stack([feed[name] for feed in call], axis=1) for name in call[0]}


def ahead(feeds: Iterator[Feed], number: int) -> Iterator[dict[str, jax.Array]]:
  """Yields the feeds in order, and starts to transfer each to the devices `number` feeds early."""
  waiting: collections.deque[dict[str, jax.Array]] = collections.deque()
  for feed in feeds:
    waiting.append(devices.distribute(feed))
    if len(waiting) > number:
      yield waiting.popleft()
  yield from waiting
