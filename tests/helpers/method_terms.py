"""Which terms the loss of a method has, by the method's options."""
from collections.abc import Mapping
from typing import Any

_OF_KIND = {
    'ce': {'ce'}, 'ab': {'ce'}, 'kd': {'ce', 'kl'}, 'dih': {'ce', 'kl'}, 'dml': {'ce', 'kl'},
    'takd': {'ce', 'kl'}, 'mhkd': {'ce', 'kl'}, 'dkd': {'ce', 'tckd', 'nckd'},
    'tofd': {'ce', 'soft', 'feature', 'orthogonality'}}


def of(methods: Mapping[str, Mapping[str, Any]], name: str) -> set[str]:
  """Returns the names of the terms of an entry of `config.methods`."""
  options = methods[name]
  if options['kind'] == 'combined':  # Without the labels of a feature method.
    return {f'{part}/{term}' for part in options['methods'] for term in of(methods, part)
            if term != 'ce' or 'weight' not in methods[part]}
  if options.get('phases') == 'two':  # A hint has been prepared.
    return {'ce', 'kl'}
  return _OF_KIND.get(options['kind'], {'ce', 'feature'})
