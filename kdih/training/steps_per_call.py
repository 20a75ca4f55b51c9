"""How a phase's updates are cut into calls of one compiled program, each of several updates."""
import collections
import itertools
from collections.abc import Iterable, Iterator

import jax
import numpy as np

from kdih.runtime import devices

Feed = dict[str, np.ndarray]


def per_call(asked: int, log_every: int, streaming: bool) -> int:
  """Updates in one call: as many as `config.compute.steps_per_call` asks for, where it does.

  Otherwise one where a convolution in a loop is slow (a CPU) or where the feeds of a call would
  have to be held at once (a streaming loader), else all between two looks at the metrics.
  """
  return asked or (1 if devices.on_cpu() or streaming else log_every)


def sizes(start: int, stop: int, every: int, most: int) -> Iterator[int]:
  """Updates in each call from `start` made to `stop`, `most` at most.

  Calls end at every multiple of `every`, and between two of these after every `most`: where one
  ends does not depend on `start`, so that a run that goes on makes the same calls, and few sizes
  have to be compiled.
  """
  while start < stop:
    size = min(most - start % every % most, every - start % every, stop - start)
    yield size
    start += size


def end_from(number: int, every: int, most: int) -> int:
  """The first number of updates from `number` on at which a call ends."""
  return next(end for end in itertools.accumulate(sizes(0, number + every, every, most))
              if end >= number)


def stacked(feeds: Iterator[Feed], numbers: Iterable[int]) -> Iterator[Feed]:
  """The feeds of each call: [devices, ...] of each update to [devices, updates, ...]."""
  for number in numbers:
    call = [next(feeds) for _ in range(number)]
    if number == 1:  # No copy is made of what may be as large as a batch of images.
      yield {name: array[:, None] for name, array in call[0].items()}
    else:
      yield {name: np.stack([feed[name] for feed in call], axis=1) for name in call[0]}


def ahead(feeds: Iterator[Feed], number: int) -> Iterator[dict[str, jax.Array]]:
  """The feeds in their order, each put on its devices up to `number` feeds before its turn."""
  waiting: collections.deque[dict[str, jax.Array]] = collections.deque()
  for feed in feeds:
    waiting.append(devices.distribute(feed))
    if len(waiting) > number:
      yield waiting.popleft()
  yield from waiting
