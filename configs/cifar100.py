"""CIFAR-100: resnet110 and its heads teach resnet8, after the paper.

    python -m kdih.main --config=configs/cifar100.py --workdir=runs/cifar100
    python -m kdih.main --config=configs/cifar100.py:runlocal --workdir=/tmp/smoke
    python -m kdih.main --config=configs/cifar100.py:laptop --workdir=runs/laptop
    python -m kdih.main --config=configs/cifar100.py:recipe=repdistiller --workdir=runs/cifar100-rd

`laptop` takes an hour on two CPU cores and gives a teacher of 40 % and students of 33 to 37 %.
"""
from kdih.config import arguments, dataset_presets, fields, recipes


def get_config(arg=None):
  """`arg`: `runlocal` for a smoke test, `laptop`, `recipe=paper|repdistiller`."""
  arg = arguments.parse_arg(arg, runlocal=False, laptop=False, recipe='paper')
  config = fields.base(arg.recipe)
  dataset_presets.use(config, 'cifar100')
  config.teacher.name = 'resnet110'
  config.student.name = 'resnet8'
  if arg.laptop:
    _laptop(config)
  if arg.runlocal:
    recipes.run_local(config)
  return config


def _laptop(config):
  """All of CIFAR-100, in what two CPU cores do in an hour: a shallow teacher, few epochs."""
  config.teacher.name = 'resnet20'
  for train, epochs in ((config.teacher.train, 4.0), (config.heads.train, 1.0),
                        (config.student.train, 4.0), (config.student.prepare, 1.0)):
    train.update(length=epochs, schedule='cosine', milestones=(), evaluate_every=0.5)
  # The recipe's 0.1 makes heads on 16,384 numbers oscillate, and one epoch is too short to settle.
  config.heads.train.learning_rate = 0.01
