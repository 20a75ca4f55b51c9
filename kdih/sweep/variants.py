"""Variants of methods: the same method with several values of alpha and of the learning rate."""
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
  """Adds variants for all of `config.sweep.alphas` and `config.sweep.learning_rates`.

  Args:
    config: checked.
    methods: names of entries in `config.methods`.

  Returns:
    The config with an entry for each variant, and the names of all variants, such as
    'kd_alpha=5e-1_lr=1e-2'. The variant with the method's own values keeps the method's name, and a
    method without an alpha has no variants by alpha.

  Raises:
    ConfigError: a method is unknown, or `alphas` is set and no method has an alpha.
  """
  if unknown := [name for name in methods if name not in config.methods]:
    raise errors.unknown('config.methods', unknown[0], config.methods)
  if config.sweep.alphas and not any('alpha' in config.methods[name] for name in methods):
    raise errors.ConfigError(f'config.sweep.alphas: is set, but no method of {", ".join(methods)} '
                             'has an alpha; add another method, or do not set it')
  variants = {variant: options for name in methods for variant, options in _of(config, name)}
  copy = config.copy_and_resolve_references()
  with copy.unlocked():
    for variant, options in variants.items():
      copy.methods[variant] = options
  return copy, tuple(variants)


def _of(config: ml_collections.ConfigDict, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields the name and the options of each variant of a method."""
  options, sweep = config.methods[name].to_dict(), config.sweep
  own = {**options, 'learning_rate': method_presets.training(config, name).learning_rate}
  given = {'alpha': sweep.alphas, 'learning_rate': sweep.learning_rates}
  varied = {option: values for option, values in given.items() if values and option in own}
  for values in itertools.product(*varied.values()):
    changed = {option: value for option, value in zip(varied, values, strict=True)
               if value != own[option]}
    suffixes = (f'_{SHORT[option]}={_written(value)}' for option, value in changed.items())
    yield name + ''.join(suffixes), {**options, **changed}


def _written(number: float) -> str:
  """Returns a number without a decimal point, for a name: 0.25 is '25e-2'."""
  whole, _, digits = f'{decimal.Decimal(repr(number)).normalize():f}'.partition('.')
  return f'{int(whole + digits)}e-{len(digits)}' if digits else whole


def alike(config: ml_collections.ConfigDict, methods: Sequence[str]) -> list[tuple[str, ...]]:
  """Returns the methods in groups of variants of each other, in the order of the first members.

  Variants require the same teacher signal. A single alpha and one alpha per member are not
  variants of each other.
  """
  groups: dict[str, list[str]] = {}
  for name in methods:
    groups.setdefault(method_presets.family(config.methods[name].to_dict()), []).append(name)
  return [tuple(group) for group in groups.values()]
