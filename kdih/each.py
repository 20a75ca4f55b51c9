"""A function of one student, for several: one after the other, or as one by `jax.vmap`."""
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kdih import parallel

WAYS = ('auto', 'vmap', 'unrolled')


class Unrolled:
  """Each student's tree is an element of a tuple."""

  def __call__(self, function: Callable[..., tuple]) -> Callable[..., tuple]:
    """A function of tuples; each of the results is a tuple too."""
    return lambda *trees: tuple(zip(*map(function, *trees), strict=True))

  def join(self, trees: Sequence[Any]) -> Any:
    """The trees of the students as those of all."""
    return tuple(trees)

  def first(self, trees: Any) -> Any:
    """The tree of the first student."""
    return trees[0]

  def split(self, trees: Any, number: int) -> tuple[Any, ...]:
    """The opposite of `join`, for so many students."""
    del number
    return trees


class Vmapped:
  """The students' trees are stacked along a new leading axis."""

  def __call__(self, function: Callable[..., tuple]) -> Callable[..., tuple]:
    """See `Unrolled`."""
    return jax.vmap(function)

  def join(self, trees: Sequence[Any]) -> Any:
    """See `Unrolled`."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

  def first(self, trees: Any) -> Any:
    """See `Unrolled`."""
    return jax.tree.map(lambda leaf: leaf[0], trees)

  def split(self, trees: Any, number: int) -> tuple[Any, ...]:
    """See `Unrolled`."""
    return tuple(jax.tree.map(lambda leaf, i=i: leaf[i], trees) for i in range(number))


Each = Unrolled | Vmapped


def way(name: str) -> Each:
  """The way `name`, one of `WAYS`; 'auto' is 'unrolled' on a CPU, where the other is far slower."""
  unrolled = parallel.on_cpu() if name == 'auto' else name == 'unrolled'
  return Unrolled() if unrolled else Vmapped()
