"""What the members of a cohort know, each alone and together, from their logits on a split."""
from typing import Any

import numpy as np

_BINS = 15


def analyse(logits: dict[str, np.ndarray], labels: np.ndarray) -> dict[str, Any]:
  """Uncertainty, calibration and agreement of the members, and what each adds to their mean.

  Args:
    logits: float [images, classes] of every member, in cohort order, without the mean.
    labels: int [images].

  Returns:
    What JSON can hold:

    - 'members': {name: {'entropy', 'ece', 'bins'}}. Entropy is that of the soft label at
      temperature 1, in nats, its mean over images. For 'ece' and 'bins' see `calibration`.
    - 'agreement': {'names', 'matrix'}: the share of images, [members, members], for which both
      have the same first choice.
    - 'without': {'none': ..., name: ...}: top-1, a fraction, of the mean soft label of all
      members, and of all but the one named. A member that is alone has no entry.
  """
  probabilities = np.stack([_softmax(z) for z in logits.values()])
  choices = probabilities.argmax(-1)
  total = probabilities.sum(0)
  sums = {'none': total}
  if len(logits) > 1:
    sums |= {name: total - own for name, own in zip(logits, probabilities, strict=True)}
  return {
      'members': {name: {'entropy': _entropy(p), **calibration(p, labels)}
                  for name, p in zip(logits, probabilities, strict=True)},
      'agreement': {'names': list(logits),
                    'matrix': (choices[:, None] == choices).mean(-1).tolist()},
      'without': {name: float((rest.argmax(-1) == labels).mean()) for name, rest in sums.items()},
  }


def calibration(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
  """The expected calibration error and its bins (Guo et al., 2017, arXiv 1706.04599, eq. 3).

  The confidence of an image is its highest probability. Bin m of M = 15 holds the images with a
  confidence in ((m - 1)/M, m/M]. ECE = sum_m (images of m / images) |accuracy_m - confidence_m|,
  with the means over the images of the bin.

  Args:
    probabilities: [images, classes].
    labels: int [images].

  Returns:
    {'ece', 'bins': [{'low', 'high', 'count', 'confidence', 'accuracy'}]}, all fractions but the
    count; the two means are None in an empty bin.
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


def _softmax(logits: np.ndarray) -> np.ndarray:
  shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
  exponentials = np.exp(shifted)
  return exponentials / exponentials.sum(-1, keepdims=True)


def _entropy(probabilities: np.ndarray) -> float:
  safe = np.where(probabilities > 0, probabilities, 1.0)  # 0 log 0 = 0.
  return float(-(probabilities * np.log(safe)).sum(-1).mean())
