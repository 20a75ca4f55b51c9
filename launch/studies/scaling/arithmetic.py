"""What can be worked out with a pencil: heads, caches, input, all-reduces, and the step of many
chips.
"""
import dataclasses
import math
from typing import Any

from kdih.models import cost
from launch.studies.scaling import large, problem

# Of the chip's roofline, what a well-tuned step reaches; of the network's bandwidth likewise.
REACHED = 0.5
# Seconds for the first byte to reach the next chip; an assumption, not a published figure.
HOP = 1e-6
# Of the time of a step, when gradients begin to be ready to be sent.
BACKWARD = 0.5
# Mean size of ImageNet's JPEG files: 138 GB (image-net.org) / 1,281,167 images.
JPEG_BYTES = 138e9 / 1_281_167


@dataclasses.dataclass(frozen=True)
class Chip:
  """Published figures of a chip, per chip.

  Attributes:
    flops: multiply-adds counted as two, a second, in bfloat16.
    memory: bytes.
    bandwidth: bytes a second from and to it.
    reduced: bytes a second, the share of a chip of the pod's all-reduce bandwidth.
    per_host: chips on one host.
    slices: {chips: its shape}, the length of each axis of the network.
  """

  flops: float
  memory: float
  bandwidth: float
  reduced: float
  per_host: int
  slices: dict[int, tuple[int, ...]]


# cloud.google.com/tpu/docs/v4 and /v5e, read in November 2026. The last figure of v4 is 1.1 PB/s
# over 4,096 chips, that of v5e 51.2 TB/s over 256. A pod of v5e has no 1,024 chips.
CHIPS = {
    'TPU v4': Chip(275e12, 32 * 2**30, 1.2e12, 1.1e15 / 4096, 4,
                   {8: (2, 2, 2), 64: (4, 4, 4), 1024: (8, 8, 16)}),
    'TPU v5e': Chip(197e12, 16 * 2**30, 819e9, 51.2e12 / 256, 8, {8: (2, 4), 64: (8, 8)}),
}


def head_sizes() -> list[dict[str, Any]]:
  """Of each teacher and kind of heads, the parameters of every head, and what training them takes.

  Parameters, gradients and momentum are float32.
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
      setup = problem.Setup(**{'student': 'resnet8', 'batch_size': 1, **fields, 'kind': kind})
      each = {tap: cost.count_parameters(dense) for tap, dense
              in problem.head_variables(setup)['params'].items()}
      total = sum(each.values())
      rows.append({'teacher': name, 'kind': kind, 'each': each, 'parameters': total,
                   'frozen_bytes': 4 * total, 'trained_bytes': 12 * total})
  return rows


def caches() -> list[dict[str, Any]]:
  """Of each data set, the bytes of one bfloat16 soft label for one view, and for all there are.

  'all' is None where views are random.
  """
  data_sets = [  # Name, images to train with, classes, views of an image; None where random.
      ('CIFAR-100', 50_000, 100, views(4, flip=True)),
      ('Tiny-ImageNet', 100_000, 200, views(4, flip=True)),
      ('Tiny-ImageNet, 8 pixels of padding', 100_000, 200, views(8, flip=True)),
      ('ImageNet, 4 pixels of padding', 1_281_167, 1000, views(4, flip=True)),
      ('ImageNet, random resized crops', 1_281_167, 1000, None),
      ('ImageNet of 21,841 classes, likewise', 14_197_122, 21_841, None)]
  return [{'data': name, 'images': images, 'classes': classes, 'views': count,
           'one': cache_bytes(images, 1, classes),
           'all': cache_bytes(images, count, classes) if count else None}
          for name, images, classes, count in data_sets]


def cache_bytes(images: int, views: int, classes: int, bytes_per_number: int = 2) -> int:
  """Of one soft label for every view of every image."""
  return images * views * classes * bytes_per_number


def views(padding: int, flip: bool) -> int:
  """Different crops (and mirrored ones) of an image that is padded by `padding` on each side."""
  return (2 * padding + 1)**2 * (2 if flip else 1)


def roofline(chip: Chip, flops: float, bytes_moved: float) -> float:
  """Seconds for so much work on one chip, at `REACHED` of the nearer ceiling."""
  return max(flops / chip.flops, bytes_moved / chip.bandwidth) / REACHED


def ring_bytes(size: float, chips: int) -> float:
  """Bytes that each chip sends in a ring all-reduce of `size` bytes."""
  return 2 * (chips - 1) / chips * size


def all_reduce(chip: Chip, size: float, chips: int, count: int = 1) -> float:
  """Seconds of `count` all-reduces of `size` bytes in all: axis by axis, in both directions.

  Twice around half of each axis is how far the first byte travels.
  """
  hops = sum(chip.slices[chips])
  return ring_bytes(size, chips) / (REACHED * chip.reduced) + count * hops * HOP


@dataclasses.dataclass(frozen=True)
class Step:
  """Seconds of a step on many chips: `compute`, and all of it `apart` and `overlapped`."""

  compute: float
  apart: float
  overlapped: float


def step(
    chip: Chip, chips: int, *, flops: float, bytes_moved: float, gradient_bytes: float,
    all_reduce_bytes: float, all_reduces: int
) -> Step:
  """The model of a step, from what one chip does in it.

  The last all-reduce is that of the gradients; the others are those of batch norms, which the
  forward and backward pass wait for. Overlapped, the gradients' hides behind the backward pass.
  """
  compute = roofline(chip, flops, bytes_moved)
  others = all_reduces - 1
  waited = all_reduce(chip, all_reduce_bytes - gradient_bytes, chips, others) if others else 0.0
  gradients = all_reduce(chip, gradient_bytes, chips)
  hidden = min(gradients, BACKWARD * compute)
  return Step(compute, compute + waited + gradients, compute + waited + gradients - hidden)


def input_rate(chips: int, per_host: int, batch: int, seconds: float) -> float:
  """Images a second that each host must deliver to its chips, `batch` to each every `seconds`."""
  return min(chips, per_host) * batch / seconds


def image_bytes(image_size: int) -> int:
  """Of a decoded image: three channels of uint8."""
  return math.prod((image_size, image_size, 3))
