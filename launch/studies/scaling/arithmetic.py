"""Estimates from formulas: sizes of heads and caches, input rates, all-reduces, and step times."""
import dataclasses
import math
from typing import Any

from kdih.models import cost
from launch.studies.scaling import large, problem

# The fraction of a chip's roofline, and of the network's bandwidth, that a well-tuned step reaches.
REACHED = 0.5
# Latency to the next chip in seconds; an assumption, not a published figure.
HOP = 1e-6
# The fraction of a step's time behind which the all-reduce of the gradients can hide.
BACKWARD = 0.5
# Mean size of ImageNet's JPEG files: 138 GB (image-net.org) / 1,281,167 images.
JPEG_BYTES = 138e9 / 1_281_167


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """Published figures of one accelerator chip.

  Attributes:
    flops: bfloat16 operations per second; a multiply-add counts as two.
    memory: bytes of memory.
    bandwidth: memory bandwidth in bytes per second.
    reduced: all-reduce bandwidth of the pod divided by its chips, in bytes per second.
    per_host: number of chips on one host.
    slices: {number of chips: shape of the slice}, the length of each axis of the network.
  """

  flops: float
  memory: float
  bandwidth: float
  reduced: float
  per_host: int
  slices: dict[int, tuple[int, ...]]


# cloud.google.com/tpu/docs/v4 and /v5e, read in November 2026. The all-reduce bandwidth of a v4 pod
# is 1.1 PB/s over 4,096 chips; that of a v5e pod is 51.2 TB/s over its 256 chips.
CHIPS = {
    'TPU v4': Chip(flops=275e12, memory=32 * 2**30, bandwidth=1.2e12, reduced=1.1e15 / 4096,
                   per_host=4, slices={8: (2, 2, 2), 64: (4, 4, 4), 1024: (8, 8, 16)}),
    'TPU v5e': Chip(flops=197e12, memory=16 * 2**30, bandwidth=819e9, reduced=51.2e12 / 256,
                    per_host=8, slices={8: (2, 4), 64: (8, 8)}),
}


def head_sizes() -> list[dict[str, Any]]:
  """Returns the sizes of the heads of several teachers, for each kind of heads.

  Returns:
    A row for each teacher and kind: the parameters of 'each' head and of all heads, and the bytes
    that they take frozen, and in training, with gradients and momentum, all in float32.
  """
  resnet, vit = large.PAIRS['resnet50 → resnet18'], large.PAIRS['ViT-S/16 → ViT-Ti/16']
  teachers = {
      'resnet110, 32 pixels': dict(teacher='resnet110', num_classes=100),
      'resnet50, 224 pixels': resnet,
      'resnet50, 224 pixels, 21,841 classes': dict(resnet, num_classes=21_841),
      'ViT-S/16, 224 pixels': vit,
  }
  rows = []
  for name, fields in teachers.items():
    for kind in ('flatten', 'gap'):
      training = problem.Training(
          **{'student': 'resnet8', 'batch_size': 1, **fields, 'kind': kind})
      sizes = {tap: cost.count_parameters(dense) for tap, dense
               in problem.head_variables(training)['params'].items()}
      total = sum(sizes.values())
      rows.append({'teacher': name, 'kind': kind, 'each': sizes, 'parameters': total,
                   'frozen_bytes': 4 * total, 'trained_bytes': 12 * total})
  return rows


def caches() -> list[dict[str, Any]]:
  """Returns the sizes of caches of bfloat16 soft labels, for several data sets.

  Returns:
    A row for each data set: the bytes for 'one' view of each image, and for 'all' views; 'all' is
    None if the views are random.
  """
  data_sets = [  # Name, training images, classes, views of an image (None if they are random).
      ('CIFAR-100', 50_000, 100, views(4, flip=True)),
      ('Tiny-ImageNet', 100_000, 200, views(4, flip=True)),
      ('Tiny-ImageNet, 8 pixels of padding', 100_000, 200, views(8, flip=True)),
      ('ImageNet, 4 pixels of padding', 1_281_167, 1000, views(4, flip=True)),
      ('ImageNet, random resized crops', 1_281_167, 1000, None),
      ('ImageNet of 21,841 classes, random resized crops', 14_197_122, 21_841, None)]
  return [{'data': name, 'images': images, 'classes': classes, 'views': count,
           'one': cache_bytes(images, 1, classes),
           'all': cache_bytes(images, count, classes) if count else None}
          for name, images, classes, count in data_sets]


def cache_bytes(images: int, views: int, classes: int, bytes_per_number: int = 2) -> int:
  """Returns the bytes of a soft label for each view of each image."""
  return images * views * classes * bytes_per_number


def views(padding: int, flip: bool) -> int:
  """Returns the number of crops, also mirrored, of an image padded by `padding` on each side."""
  return (2 * padding + 1)**2 * (2 if flip else 1)


def roofline(chip: Chip, flops: float, bytes_moved: float) -> float:
  """Returns the seconds for this work on one chip, at `REACHED` of the limiting ceiling."""
  return max(flops / chip.flops, bytes_moved / chip.bandwidth) / REACHED


def ring_bytes(size: float, chips: int) -> float:
  """Returns the bytes that each chip sends in a ring all-reduce of `size` bytes."""
  return 2 * (chips - 1) / chips * size


def all_reduce(chip: Chip, size: float, chips: int, count: int = 1) -> float:
  """Returns the seconds of `count` all-reduces of `size` bytes in total.

  They reduce axis by axis, in both directions: the first byte travels twice along half of
  each axis.
  """
  hops = sum(chip.slices[chips])
  return ring_bytes(size, chips) / (REACHED * chip.reduced) + count * hops * HOP


@dataclasses.dataclass(frozen=True)
class Step:
  """Times of a step on many chips, in seconds.

  Attributes:
    compute: time for computing.
    apart: time for computing and, after it, for all-reduces.
    overlapped: the same, if the all-reduce of the gradients overlaps with the backward pass.
  """

  compute: float
  apart: float
  overlapped: float


def step(
    chip: Chip, chips: int, *, flops: float, bytes_moved: float, gradient_bytes: float,
    all_reduce_bytes: float, all_reduces: int
) -> Step:
  """Returns the modelled times of a step, from the work of one chip.

  The last all-reduce is for the gradients. All others are for batch norms, and the forward and
  backward pass wait for them.
  """
  compute = roofline(chip, flops, bytes_moved)
  others = all_reduces - 1
  waited = all_reduce(chip, all_reduce_bytes - gradient_bytes, chips, others) if others else 0.0
  gradients = all_reduce(chip, gradient_bytes, chips)
  hidden = min(gradients, BACKWARD * compute)
  return Step(compute, compute + waited + gradients, compute + waited + gradients - hidden)


def input_rate(chips: int, per_host: int, batch: int, seconds: float) -> float:
  """Returns the images per second that a host delivers, with `batch` per chip every `seconds`."""
  return min(chips, per_host) * batch / seconds


def image_bytes(image_size: int) -> int:
  """Returns the bytes of a decoded image, with three channels of uint8."""
  return math.prod((image_size, image_size, 3))
