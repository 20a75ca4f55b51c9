"""Which terms the loss of a method has, by the method's options, and what a phase logs of them."""
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pytest

from kdih.training import metric_log

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


def logged(folder: pathlib.Path, terms: Iterable[str]) -> list[list[float]]:
  """Returns the terms in each of the four lines of a tiny phase that tell of its loss; they are
  all there is, finite, and add up to the loss."""
  lines = [line for line in metric_log.read_metrics(folder / 'metrics.jsonl')
           if 'train/loss' in line]
  assert len(lines) == 4
  found = []
  for line in lines:
    assert {key for key in line if key.startswith('train/')} == {
        f'train/{name}' for name in ('loss', 'top1', *terms)}
    parts = [line[f'train/{term}'] for term in terms]
    assert np.isfinite(parts).all() and sum(parts) == pytest.approx(line['train/loss'], rel=1e-5)
    found.append(parts)
  return found
