"""Tiny-ImageNet, 64x64 pixels, 200 classes: resnet34 and its heads teach resnet18.

    python -m kdih.main --config=configs/tiny_imagenet.py --workdir=runs/tiny
    python -m kdih.main --config=configs/tiny_imagenet.py:runlocal --workdir=/tmp/smoke
    python -m kdih.main --config=configs/tiny_imagenet.py:recipe=repdistiller --workdir=runs/tiny-rd

The zip of 237 MiB is downloaded when it is first asked for; where there is no network, put
tiny-imagenet-200.zip into ~/tensorflow_datasets/downloads/manual. Its 10,000 validation images
are the test split, for its own test images have no labels. The whole train split takes 1.1 GiB
on every device (`--config.data.loader=streaming` keeps it on disk), and the four `flatten` heads
have 98 million parameters (`--config.heads.kind=gap`: 0.2 million).
"""
from kdih.config import arguments, dataset_presets, fields, recipes


def get_config(arg=None):
  """`arg`: `runlocal` for a smoke test, `recipe=paper|repdistiller`."""
  arg = arguments.parse_arg(arg, runlocal=False, recipe='paper')
  config = fields.base(arg.recipe)
  dataset_presets.use(config, 'tiny_imagenet')
  config.teacher.name = 'resnet34'
  config.student.name = 'resnet18'
  if arg.runlocal:
    recipes.run_local(config)
  return config
