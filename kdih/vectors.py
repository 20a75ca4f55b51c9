"""Directions and inner products of vectors, with gradients that stay finite."""
import jax
import jax.numpy as jnp

_SHORTEST = 1e-12  # PyTorch's `normalize` divides by no less.


def unit(vectors: jax.Array) -> jax.Array:
  """Each vector of the last axis over its length; one shorter than 1e-12 is 0, without gradient.

  PyTorch's `normalize` divides the latter by 1e-12, which makes their gradients as much larger.
  """
  squares = (vectors * vectors).sum(-1, keepdims=True)
  long = squares > _SHORTEST**2
  return jnp.where(long, vectors * jax.lax.rsqrt(jnp.where(long, squares, 1)), 0)


def products(one: jax.Array, other: jax.Array) -> jax.Array:
  """Inner products of all with all, [..., n, width] and [..., m, width] to [..., n, m].

  In full float32: what accelerators may take instead leaves a cosine three digits, and what is
  compared here differs in less.
  """
  return jnp.einsum('...nw,...mw->...nm', one, other, precision=jax.lax.Precision.HIGHEST)
