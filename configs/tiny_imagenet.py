"""Tiny-ImageNet, 64x64 pixels and 200 classes: a resnet34 and its heads teach a resnet18.

    python -m kdih.main --config=configs/tiny_imagenet.py --workdir=runs/tiny
    python -m kdih.main --config=configs/tiny_imagenet.py:runlocal --workdir=/tmp/smoke
    python -m kdih.main --config=configs/tiny_imagenet.py:recipe=repdistiller --workdir=runs/tiny-rd

The first run downloads a zip of 237 MiB. Without a network, put tiny-imagenet-200.zip into
~/tensorflow_datasets/downloads/manual. The 10,000 validation images of the data set are the test
split here, because its own test images have no labels.

The train split takes 1.1 GiB on every device; `--config.data.loader=streaming` reads it from disk
instead. The four `flatten` heads have 98 million parameters; `--config.heads.kind=gap` reduces them
to 0.2 million.

The recipe was not run with kdih, and neither its time nor its accuracy is known. Add --dry_run to a
command to estimate its time on your device.
"""
from kdih.config import arguments, dataset_presets, fields, recipes


def get_config(arg=None):
  """Returns the config.

  Args:
    arg: `runlocal` for a smoke test, `recipe=paper` or `recipe=repdistiller`.
  """
  arg = arguments.parse_arg(arg, runlocal=False, recipe='paper')
  # 200 epochs with batches of 64, or 240 with the recipe of RepDistiller; methods ce, kd and dih.
  config = fields.base(arg.recipe)
  # 100,000 images to train and validate with, normalised as in the DIH code.
  dataset_presets.use(config, 'tiny_imagenet')
  # A pair of models for larger images, of the DIH code.
  config.teacher.name = 'resnet34'
  config.student.name = 'resnet18'
  if arg.runlocal:
    recipes.run_local(config)
  return config
