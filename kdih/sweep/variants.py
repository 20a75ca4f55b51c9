"""Variants of methods: every method with several weights of the teachers and learning rates."""
import decimal
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import ml_collections

from kdih import errors
from kdih.config import method_presets
from kdih.config.method_presets import SHORT


def expand(
    config: ml_collections.ConfigDict, methods: Sequence[str]
) -> tuple[ml_collections.ConfigDict, tuple[str, ...]]:
  """Every method with each of `config.sweep.alphas` and at each of `config.sweep.learning_rates`.

  Args:
    config: checked.
    methods: names of entries in `config.methods`.

  Returns:
    The config with an entry for each variant, and the names of all, such as
    'kd_alpha=5e-1_lr=1e-2'. A method keeps its name where it has these values anyway, and one
    without an alpha is there once for all alphas.

  Raises:
    ConfigError: an unknown method, or none that has an alpha.
  """
  if unknown := [name for name in methods if name not in config.methods]:
    raise errors.unknown('config.methods', unknown[0], config.methods)
  if config.sweep.alphas and not any('alpha' in config.methods[name] for name in methods):
    raise errors.ConfigError(f'config.sweep.alphas: is set, and none of {", ".join(methods)} has '
                             'an alpha; name another method, or leave it out')
  variants = {variant: options for name in methods for variant, options in _of(config, name)}
  copy = config.copy_and_resolve_references()
  with copy.unlocked():
    for variant, options in variants.items():
      copy.methods[variant] = options
  return copy, tuple(variants)


def _of(config: ml_collections.ConfigDict, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
  """Name and options of each variant of a method."""
  options, sweep = config.methods[name].to_dict(), config.sweep
  own = {**options, 'learning_rate': method_presets.training(config, name).learning_rate}
  wanted = {'alpha': sweep.alphas, 'learning_rate': sweep.learning_rates}
  asked = {option: values for option, values in wanted.items() if values and option in own}
  for values in itertools.product(*asked.values()):
    changed = {option: value for option, value in zip(asked, values, strict=True)
               if value != own[option]}
    suffixes = (f'_{SHORT[option]}={_written(value)}' for option, value in changed.items())
    yield name + ''.join(suffixes), {**options, **changed}


def _written(number: float) -> str:
  """A number as a part of a name, which has no point: 0.25 is '25e-2'."""
  whole, _, digits = f'{decimal.Decimal(repr(number)).normalize():f}'.partition('.')
  return f'{int(whole + digits)}e-{len(digits)}' if digits else whole


def alike(config: ml_collections.ConfigDict, methods: Sequence[str]) -> list[tuple[str, ...]]:
  """The methods in groups of variants of each other, in the order of their first ones.

  They are asked of the same teachers the same; one alpha for all members, or one for each, is not.
  """
  groups: dict[str, list[str]] = {}
  for name in methods:
    groups.setdefault(method_presets.family(config.methods[name].to_dict()), []).append(name)
  return [tuple(group) for group in groups.values()]
