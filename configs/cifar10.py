"""CIFAR-10: a resnet110 and its heads teach a resnet8, by the recipe of the DIH paper.

    python -m kdih.main --config=configs/cifar10.py --workdir=runs/cifar10
    python -m kdih.main --config=configs/cifar10.py:runlocal --workdir=/tmp/smoke
    python -m kdih.main --config=configs/cifar10.py:recipe=repdistiller --workdir=runs/cifar10-rd

The whole recipe was not run with kdih, and no accuracy is known. The data set has the size of
CIFAR-100, for which a dry run on one H100 estimates 53 minutes (launch/results/gpu/dry_run.txt).
Add --dry_run to a command to estimate its time on your device.
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
  # 50,000 images to train and validate with, normalised as in the DIH code.
  dataset_presets.use(config, 'cifar10')
  # The models with the largest gap in size that the DIH code compares.
  config.teacher.name = 'resnet110'
  config.student.name = 'resnet8'
  if arg.runlocal:
    recipes.run_local(config)
  return config
