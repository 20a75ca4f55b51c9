"""The residual networks for CIFAR: three stages, depth 6n + 2 (He et al., 2016, section 4.2).

Taps at 32x32: 32x32x16, 16x16x32, 8x8x64; the "x4" models are four times as wide, behind a stem
twice as wide (Tian et al., 2020, *Contrastive Representation Distillation*). Shortcuts are
projections (option B), as in RepDistiller's `resnet.py` and the DIH authors' `tiny_resnets.py`;
He et al. pad with zeros there (option A).
"""
from functools import partial

from kdih.models.resnet import ResNet


def _cifar(depth: int) -> partial[ResNet]:
  return partial(ResNet, stage_sizes=((depth - 2) // 6,) * 3, stage_widths=(16, 32, 64),
                 stem_width=16)


MODELS = {f'resnet{depth}': _cifar(depth) for depth in (8, 14, 20, 32, 44, 56, 110)} | {
    f'resnet{depth}x4': partial(_cifar(depth), stage_widths=(64, 128, 256), stem_width=32)
    for depth in (8, 32)
}
