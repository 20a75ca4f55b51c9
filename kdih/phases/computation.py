"""Digests of the programs that a run computes: they change with the code of models and methods."""
import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend import core

from kdih.distillation.method import Method, total
from kdih.models import taps as taps_lib
from kdih.models.taps import Variables
from kdih.phases import networks
from kdih.phases.networks import Networks
from kdih.runtime import devices, digests

# Names of functions contain addresses, which differ between processes.
_ADDRESS = re.compile(r' at 0x[0-9a-f]+')


def identify(built: Networks) -> dict[str, Any]:
  """Traces the networks and the losses of the methods, and returns digests of the programs.

  Nothing is computed. The digests do not depend on the settings of `config.compute`, nor on the
  backward pass of a custom gradient.

  Returns:
    A dictionary with these keys. 'jax': the version of jax, on which the programs depend.
    'teacher' and 'student': SHA-256 of the initialisation and of the forward pass of one image, in
    evaluation and in training mode. 'heads': SHA-256 of their forward pass. 'methods':
    {name: SHA-256 of the loss of two images, of the loss of the preparation, and of the
    assistants}.
  """
  shape = built.spec.image_shape
  features = {tap: jax.ShapeDtypeStruct((1, *shape), jnp.float32)
              for tap, shape in built.taps.items()}
  return {
      'jax': jax.__version__,
      'teacher': _of_model(built.teacher, built.teacher_variables, shape),
      'heads': _of(built.heads.apply, networks.abstract_heads(built), features),
      'student': _of_model(built.student, built.student_variables, shape),
      'methods': {name: _of_method(built, name) for name in built.methods}}


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
  """Returns a line for each program that has changed.

  Only parts that are in both dictionaries are compared, and none if the versions of jax differ.

  Args:
    before: from `identify`, read back from JSON.
    now: from `identify`.
  """
  if before.get('jax') != now.get('jax'):
    return []
  parts = {part: f"the {part}'s forward pass or initialisation" for part in ('teacher', 'student')}
  parts['heads'] = "the heads' forward pass"
  lines = [f'{program} has changed' for part, program in parts.items()
           if part in before and part in now and before[part] != now[part]]
  methods, methods_now = before.get('methods', {}), now.get('methods', {})
  return lines + [f'the loss of the method {name} has changed' for name in methods
                  if name in methods_now and methods[name] != methods_now[name]]


def _of_model(model: nn.Module, variables: Variables, image_shape: tuple[int, ...]) -> str:
  image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)

  def forward(train: bool, variables, image):
    output, state = taps_lib.with_streams(lambda rngs: model.apply(
        variables, image, train=train, mutable=[*taps_lib.changing(variables), *taps_lib.SOWN],
        rngs=rngs), jax.random.key(0))
    # A module may sow values that are not arrays, which a program cannot return.
    return taps_lib.logits_of(output), jax.tree.map(
        lambda leaf: leaf if isinstance(leaf, jax.Array) else None, state)

  programs = [_of(functools.partial(taps_lib.initial, model), jax.random.key(0), image),
              _of(functools.partial(forward, False), variables, image)]
  with contextlib.suppress(Exception):  # An existing teacher needs no training mode.
    programs.append(_of(functools.partial(forward, True), variables, image))
  return digests.of_json(programs)


def _of_method(built: Networks, name: str) -> str:
  method = _without_switches(built.methods[name])
  variables = networks.abstract_method(built, name, num_examples=2)

  def loss(which: str, variables):
    lesson = networks.blank_lesson(built, method, num_examples=2)
    terms, changed = taps_lib.with_streams(lambda rngs: method.apply(
        variables, dataclasses.replace(lesson, gather=devices.gather),
        mutable=taps_lib.changing(variables), rngs=rngs, method=which), jax.random.key(0))
    return total(terms), changed

  losses = ['prepare', '__call__'] if method.prepares else ['__call__']
  programs = [_of(functools.partial(loss, which), variables) for which in losses]
  for model in method.assistants:
    module = built.assistants[model]
    programs.append(_of_model(module, taps_lib.abstract_variables(module, built.spec.image_shape),
                              built.spec.image_shape))
  return digests.of_json(programs)


def _without_switches(method: Method) -> Method:
  """Returns the method and its parts as if `config.compute.mean_soft_label` were True.

  This switch changes the program, but its numbers only by rounding.
  """
  def part(name: str) -> Method:
    return _without_switches(method.context.method(name))

  return method.clone(
      context=dataclasses.replace(method.context, mean_soft_label=True, method=part))


def _of(function: Callable, *arguments: Any) -> str:
  """Returns SHA-256 of a traced program: its text, its constants, and the paths of its arguments
  and results."""
  traced, result = jax.make_jaxpr(
      function, axis_env=[(devices.AXIS, 1)], return_shape=True)(*arguments)
  paths = [jax.tree_util.keystr(path) for path, _ in
           jax.tree_util.tree_leaves_with_path((arguments, result))]
  constants = [digests.of(_numbers(value)) for value in _constants(traced)]
  return digests.of_json([_ADDRESS.sub('', str(traced)), constants, paths])


def _constants(traced: Any) -> Iterator[Any]:
  """Yields the constants of a program and of the programs that it calls.

  The text of a program abbreviates large constants.
  """
  yield from getattr(traced, 'consts', ())
  for equation in traced.eqns:
    yield from (read.val for read in equation.invars if isinstance(read, core.Literal))
    for value in equation.params.values():
      for inner in value if isinstance(value, tuple | list) else (value,):
        if hasattr(inner, 'eqns'):
          yield from _constants(inner)


def _numbers(value: Any) -> Any:
  is_key = jnp.issubdtype(jax.dtypes.result_type(value), jax.dtypes.prng_key)
  return jax.random.key_data(value) if is_key else value
