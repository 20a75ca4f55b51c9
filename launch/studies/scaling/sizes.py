"""Sizes that follow from shapes alone: of heads, and of the cohort's cache."""
from typing import Any

from kdih.cohort.head_modules import Heads
from launch.studies.scaling import arithmetic, large, problem

_HEADS = {
    'resnet110, 32 pixels': dict(teacher='resnet110', num_classes=100),
    'resnet50, 224 pixels': large.PAIRS['resnet50 → resnet18'],
    'resnet50, 224 pixels, 21,841 classes': dict(
        large.PAIRS['resnet50 → resnet18'], num_classes=21_841),
    'ViT-S/16, 224 pixels': large.PAIRS['ViT-S/16 → ViT-Ti/16'],
}
# Name, images to train with, classes, views of an image; the last is random where it is 0.
_CACHES = (
    ('CIFAR-100', 50_000, 100, arithmetic.views(4, flip=True)),
    ('Tiny-ImageNet', 100_000, 200, arithmetic.views(4, flip=True)),
    ('Tiny-ImageNet, 8 pixels of padding', 100_000, 200, arithmetic.views(8, flip=True)),
    ('ImageNet, 4 pixels of padding', 1_281_167, 1000, arithmetic.views(4, flip=True)),
    ('ImageNet, random resized crops', 1_281_167, 1000, 0),
    ('ImageNet of 21,841 classes, likewise', 14_197_122, 21_841, 0),
)


def heads() -> list[dict[str, Any]]:
  """Of each teacher and kind of heads, the parameters of every head, and what training them takes.

  Parameters, gradients and momentum are float32.
  """
  rows = []
  for name, fields in _HEADS.items():
    for kind in ('flatten', 'gap'):
      setup = problem.Setup(**{'student': 'resnet8', 'batch_size': 1, **fields, 'kind': kind})
      features = setup.features()
      variables = problem.abstract_heads(Heads(setup.num_classes, kind), features)
      each = {tap: problem.count(variables['params'][tap]) for tap in features}
      total = sum(each.values())
      rows.append({'teacher': name, 'kind': kind, 'each': each, 'parameters': total,
                   'frozen_bytes': 4 * total, 'trained_bytes': 12 * total})
  return rows


def caches() -> list[dict[str, Any]]:
  """Of each data set, the bytes of one bfloat16 soft label for one view, and for all there are.

  'all' is None where views are random.
  """
  return [{'data': name, 'images': images, 'classes': classes, 'views': views or None,
           'one': arithmetic.cache_bytes(images, 1, classes),
           'all': arithmetic.cache_bytes(images, views, classes) if views else None}
          for name, images, classes, views in _CACHES]
