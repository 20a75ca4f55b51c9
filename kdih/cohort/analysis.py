"""Statistics of the members of a cohort, alone and together, from their logits on a split."""
from typing import Any

import numpy as np
from scipy import special

_BINS = 15


def analyse(logits: dict[str, np.ndarray], labels: np.ndarray) -> dict[str, Any]:
  """Computes uncertainty, calibration and agreement of the members, and the gain by each member.

  Args:
    logits: float [images, classes] of every member, in cohort order, without the mean.
    labels: int [images].

  Returns:
    A dictionary that JSON can hold:

    - 'members': {name: {'entropy', 'ece', 'bins'}}. 'entropy' is the mean over the images of the
      soft label's entropy, at temperature 1, in nats. For 'ece' and 'bins' see `calibration`.
    - 'agreement': {'names', 'matrix'}: the fraction of images, [members, members], for which two
      members have the same first choice.
    - 'without': {'none': ..., name: ...}: the top-1 accuracy, a fraction, of the mean soft label of
      all members, and of all members but the named one. It has only 'none' for a single member.
  """
  probabilities = special.softmax(np.stack(list(logits.values())).astype(np.float64), axis=-1)
  choices = probabilities.argmax(-1)
  total = probabilities.sum(0)
  sums = {'none': total}
  if len(logits) > 1:
    sums |= {name: total - own for name, own in zip(logits, probabilities, strict=True)}
  return {
      'members': {name: {'entropy': float(special.entr(p).sum(-1).mean()), **calibration(p, labels)}
                  for name, p in zip(logits, probabilities, strict=True)},
      'agreement': {'names': list(logits),
                    'matrix': (choices[:, None] == choices).mean(-1).tolist()},
      'without': {name: float((rest.argmax(-1) == labels).mean()) for name, rest in sums.items()},
  }


def calibration(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
  """Computes the expected calibration error (Guo et al., 2017, arXiv 1706.04599, eq. 3).

  The confidence of an image is its highest probability. Bin m of M = 15 holds the images with a
  confidence in ((m - 1)/M, m/M]. ECE = sum_m (images of m / images) |accuracy_m - confidence_m|,
  with the means over the images of the bin.

  Args:
    probabilities: [images, classes].
    labels: int [images].

  Returns:
    {'ece', 'bins': [{'low', 'high', 'count', 'confidence', 'accuracy'}]}. All numbers but 'count'
    are fractions; the means 'confidence' and 'accuracy' are None in an empty bin.
  """
  confidence = probabilities.max(-1)
  right = probabilities.argmax(-1) == labels
  edges = np.arange(_BINS + 1) / _BINS
  place = np.clip(np.searchsorted(edges, confidence) - 1, 0, _BINS - 1)
  bins: list[dict[str, Any]] = []
  for m in range(_BINS):
    inside = place == m
    count = int(inside.sum())
    bins.append({'low': float(edges[m]), 'high': float(edges[m + 1]), 'count': count,
                 'confidence': float(confidence[inside].mean()) if count else None,
                 'accuracy': float(right[inside].mean()) if count else None})
  gaps = [b['count'] * abs(b['accuracy'] - b['confidence']) for b in bins if b['count']]
  return {'ece': sum(gaps) / len(labels), 'bins': bins}
