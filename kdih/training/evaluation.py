"""Evaluation that counts every example exactly once, on any number of devices."""
from typing import Any

import jax
import numpy as np

from kdih.data import loaders, sampling
from kdih.runtime import devices
from kdih.training.step import make_eval_step, make_predict_step
from kdih.training.task import Task

Metrics = dict[str, dict[str, float]]


class Evaluator:
  """Measures the predictions of a task on a subset of a split.

  Args:
    task: makes the predictions.
    loader: loader of the split.
    subset: int32 indices of the examples to evaluate.
    preprocess: from `kdih.data.augment.make_preprocess`.
    batch_size: global batch size; rounded up to a multiple of the number of devices.
    num_classes: number of classes; up to 5 classes, top-5 accuracy is left out.
  """

  def __init__(self, *, task: Task, loader: loaders.Loader, subset: np.ndarray, preprocess,
               batch_size: int, num_classes: int):
    self._step = make_eval_step(task=task, gather=loader.gather, preprocess=preprocess)
    self._predict_step = make_predict_step(
        task=task, gather=loader.gather, preprocess=preprocess)
    self._loader, self._subset = loader, subset
    share = devices.num_devices()
    self._batch_size = -(-min(batch_size, len(subset)) // share) * share
    self._with_top5 = num_classes > 5

  def __call__(self, variables: Any, frozen: Any) -> Metrics:
    """Returns {classifier: {'top1', 'top5', 'loss', 'agreement'}}, in fractions and nats.

    `agreement` is present if the task has a reference, for every other classifier.
    """
    variables, frozen = devices.replicate((variables, frozen))
    sums = [self._step(variables, frozen, self._loader.resident, feed) for feed in self._feeds()]
    sums = devices.to_host(sums)
    count = sum(float(s.pop('count')) for s in sums)
    totals = {name: {key: sum(float(s[name][key]) for s in sums) for key in sums[0][name]}
              for name in sums[0]}
    keys = ('top1', *(('top5',) if self._with_top5 else ()), 'loss', 'agreement')
    return {name: {key: total[key] / count for key in keys if key in total}
            for name, total in totals.items()}

  def predict(self, variables: Any, frozen: Any) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns ({classifier: logits [images, classes]}, labels [images]) in the subset's order.

    The classifiers are sorted by name.
    """
    variables, frozen = devices.replicate((variables, frozen))
    parts = [self._predict_step(variables, frozen, self._loader.resident, feed)
             for feed in self._feeds()]
    logits, labels, mask = jax.tree.map(lambda *arrays: np.concatenate(arrays),
                                        *devices.to_host(parts))
    return {name: array[mask > 0] for name, array in logits.items()}, labels[mask > 0]

  def _feeds(self):
    batches = map(devices.local_slice, sampling.eval_batches(self._subset, self._batch_size))
    return map(devices.shard, self._loader.feeds(batches))
