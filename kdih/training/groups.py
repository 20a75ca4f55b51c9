"""A function of one student, for several: one after the other, or as one by `jax.vmap`."""
import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from kdih.runtime import devices

Kind = TypeVar('Kind')


class Each:
  """Students in groups: those of a group are one by `jax.vmap`, the groups follow each other.

  The trees of all students are a tuple with one tree for every group; where a group has several
  students, theirs are stacked along a new leading axis.

  Args:
    sizes: students of each group.
  """

  def __init__(self, sizes: Sequence[int]):
    self.sizes = tuple(sizes)

  def __call__(self, functions: Sequence[Callable[..., tuple]]) -> Callable[..., tuple]:
    """A function of the trees of all students; so is each of its results.

    Args:
      functions: of one student, to a tuple; one for every group.
    """
    mapped = [function if size == 1 else jax.vmap(function)
              for function, size in zip(functions, self.sizes, strict=True)]
    return lambda *trees: tuple(zip(*(function(*own) for function, *own in zip(
        mapped, *trees, strict=True)), strict=True))

  def join(self, trees: Sequence[Any]) -> tuple[Any, ...]:
    """The students' trees, one for each, as those of all."""
    rest = iter(trees)
    return tuple(_stacked(tuple(itertools.islice(rest, size))) for size in self.sizes)

  def first(self, trees: tuple[Any, ...]) -> Any:
    """The tree of the first student."""
    return self.split(trees)[0]

  def split(self, trees: tuple[Any, ...]) -> tuple[Any, ...]:
    """The opposite of `join`."""
    return tuple(itertools.chain.from_iterable(
        (tree,) if size == 1 else (jax.tree.map(lambda leaf, i=i: leaf[i], tree)
                                   for i in range(size))
        for tree, size in zip(trees, self.sizes, strict=True)))


def _stacked(trees: tuple[Any, ...]) -> Any:
  return trees[0] if len(trees) == 1 else jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def group(way: str, kinds: Sequence[Kind]) -> tuple[Each, list[Kind]]:
  """Students in groups, and the kind of each group.

  Students that follow each other and are of one kind, the same object, can be a group.

  Args:
    way: one of `choices.TOGETHER_BY`. 'unrolled' makes a group of every student; 'auto' does so on
      a CPU, where `jax.vmap` is far slower.
    kinds: one for every student.
  """
  if way == 'unrolled' or way == 'auto' and devices.on_cpu():
    return Each([1] * len(kinds)), list(kinds)
  groups = [list(same) for _, same in itertools.groupby(kinds, key=id)]
  return Each([len(same) for same in groups]), [same[0] for same in groups]
