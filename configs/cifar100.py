"""CIFAR-100: a resnet110 and its heads teach a resnet8, by the recipe of the DIH paper.

    python -m kdih.main --config=configs/cifar100.py --workdir=runs/cifar100
    python -m kdih.main --config=configs/cifar100.py:runlocal --workdir=/tmp/smoke
    python -m kdih.main --config=configs/cifar100.py:laptop --workdir=runs/laptop
    python -m kdih.main --config=configs/cifar100.py:recipe=repdistiller --workdir=runs/cifar100-rd

`laptop` trains for 54 minutes on two CPU cores. Its teacher has a test accuracy of 40 % and its
students 33 % (ce), 35 % (kd) and 37 % (dih), see launch/results/cifar100_laptop.md.

The whole recipe was not run with kdih, and no accuracy is known. A dry run on one H100 estimates
53 minutes for the first command (launch/results/gpu/dry_run.txt). Add --dry_run to a command to
estimate its time on your device.
"""
from kdih.config import arguments, dataset_presets, fields, recipes


def get_config(arg=None):
  """Returns the config.

  Args:
    arg: `runlocal` for a smoke test, `laptop`, `recipe=paper` or `recipe=repdistiller`.
  """
  arg = arguments.parse_arg(arg, runlocal=False, laptop=False, recipe='paper')
  # 200 epochs with batches of 64, or 240 with the recipe of RepDistiller; methods ce, kd and dih.
  config = fields.base(arg.recipe)
  # 50,000 images to train and validate with, normalised as in the DIH code.
  dataset_presets.use(config, 'cifar100')
  # The models with the largest gap in size that the DIH code compares.
  config.teacher.name = 'resnet110'
  config.student.name = 'resnet8'
  if arg.laptop:
    _laptop(config)
  if arg.runlocal:
    recipes.run_local(config)
  return config


def _laptop(config):
  """Reduces the models and the epochs to about an hour on two CPU cores."""
  # A shallow teacher: a step of resnet110 takes several times as long.
  config.teacher.name = 'resnet20'
  # Few epochs, in which the learning rate falls to 0. Half an epoch between two evaluations.
  for train, epochs in ((config.teacher.train, 4.0), (config.heads.train, 1.0),
                        (config.student.train, 4.0), (config.student.prepare, 1.0)):
    train.update(length=epochs, schedule='cosine', milestones=(), evaluate_every=0.5)
  # At the recipe's 0.1, heads on features of 16,384 numbers oscillate longer than one epoch.
  config.heads.train.learning_rate = 0.01
