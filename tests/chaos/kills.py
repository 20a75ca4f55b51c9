"""Kills: a run is killed at some moment, perhaps again when it resumes, and then left alone.

A try is named `kills:KIND:MOMENT,MOMENT`, with a moment for each start that is killed; `&` stands
between those of processes that run at the same time. See `harms.Kill`.
"""
import random
from collections.abc import Iterator

from tests.chaos import kinds
from tests.chaos.harms import Harm, Kill
from tests.chaos.tries import Arena, Outcome, harmed, problems_of


def plan(arena: Arena, chosen: list[kinds.Kind], count: int, seed: int) -> Iterator[str]:
  """Yields the names of `count` tries, spread over the kinds by their shares."""
  total = sum(kind.share for kind in chosen)
  done = shares = 0
  for kind in chosen:
    shares += kind.share
    reference = arena.reference(kind)
    rng = random.Random(f'{seed}:{kind.name}')
    while done < round(count * shares / total):
      starts = rng.choices((1, 2, 3), (6, 3, 1))[0]
      moments = [[Kill.draw(rng, reference.changes, reference.seconds)
                  if not number or rng.random() < 0.5 else Harm()
                  for number in range(kind.processes)] for _ in range(starts)]
      yield f'kills:{kind.name}:' + ','.join('&'.join(map(str, each)) for each in moments)
      done += 1


def attempt(arena: Arena, name: str) -> Outcome:
  """Makes the try of this name."""
  _, kind_name, moments = name.split(':')
  kind, outcome = kinds.KINDS[kind_name], Outcome()
  place = arena.ground.fresh(kind)
  for start in moments.split(','):
    harms = [Kill.parse(text) for text in start.split('&')]
    for ended, harm in zip(arena.run(kind, place, harms), harms, strict=True):
      outcome.harmed.append(harmed(ended, harm))
      outcome.seconds += ended.seconds
      if not ended.killed:
        outcome.problems += problems_of(ended, {0})
  return arena.finish(kind, outcome)
