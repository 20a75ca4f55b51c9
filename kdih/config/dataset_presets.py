"""Fields of `config.data` for the data sets of the paper: their normalisation and test split."""
from typing import Any

import ml_collections

_KNOWN: dict[str, dict[str, Any]] = {
    'cifar10': dict(mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.243, 0.261)),
    'cifar100': dict(mean=(0.507, 0.487, 0.441), std=(0.267, 0.256, 0.276)),
    # The test images have no labels, and the validation images take their place.
    'tiny_imagenet': dict(mean=(0.4802, 0.4481, 0.3975), std=(0.2770, 0.2691, 0.2821),
                          test_split='validation'),
}
NAMES = tuple(_KNOWN)


def use(config: ml_collections.ConfigDict, name: str) -> None:
  """Sets `config.data` to the data set `name`, one of `NAMES`, normalised as in the DIH code."""
  config.data.name = name
  config.data.update(**_KNOWN[name])
