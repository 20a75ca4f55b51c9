"""Kills: a run is killed at some moment, perhaps again when it resumes, and then left alone.

A try is named `kills:KIND:MOMENT,MOMENT`, with a moment for each start that is killed; `&` stands
between those of processes that run at the same time. `harms.Kill` explains the moments.
"""
import itertools
import random
from collections.abc import Iterator

from tests.chaos import kinds
from tests.chaos.harms import Harm, Kill
from tests.chaos.tries import Arena, Outcome

KINDS = kinds.KINDS


def plan(arena: Arena, chosen: list[str], seed: int) -> Iterator[str]:
  """Yields the names of tries, spread over the kinds by their shares, in turns."""
  turns = itertools.cycle([
      stream for kind in map(KINDS.get, chosen)
      for stream in [_draws(arena, kind, seed)] * kind.share])
  return map(next, turns)


def _draws(arena: Arena, kind: kinds.Kind, seed: int) -> Iterator[str]:
  rng, reference = random.Random(f'{seed}:{kind.name}'), arena.reference(kind)
  while True:
    starts = rng.choices((1, 2, 3), (6, 3, 1))[0]
    moments = [[Kill.draw(rng, reference.count('change'), reference.seconds)
                if not number or rng.random() < 0.5 else Harm()
                for number in range(kind.processes)] for _ in range(starts)]
    yield f'kills:{kind.name}:' + ','.join('&'.join(map(str, each)) for each in moments)


def attempt(arena: Arena, name: str) -> Outcome:
  """Makes the try of this name."""
  _, kind, starts = name.split(':')
  return arena.attempt(KINDS[kind], starts)
