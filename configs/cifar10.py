"""CIFAR-10: resnet110 and its heads teach resnet8, after the paper.

    python -m kdih.main --config=configs/cifar10.py --workdir=runs/cifar10
    python -m kdih.main --config=configs/cifar10.py:runlocal --workdir=/tmp/smoke
    python -m kdih.main --config=configs/cifar10.py:recipe=repdistiller --workdir=runs/cifar10-rd
"""
from kdih.config import arguments, dataset_presets, fields, recipes


def get_config(arg=None):
  """`arg`: `runlocal` for a smoke test, `recipe=paper|repdistiller`."""
  arg = arguments.parse_arg(arg, runlocal=False, recipe='paper')
  config = fields.base(arg.recipe)
  dataset_presets.use(config, 'cifar10')
  config.teacher.name = 'resnet110'
  config.student.name = 'resnet8'
  if arg.runlocal:
    recipes.run_local(config)
  return config
