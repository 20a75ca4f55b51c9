"""CIFAR-100: resnet110 and its heads teach resnet8, after the paper.

    python -m kdih.main --config=configs/cifar100.py --workdir=runs/cifar100
    python -m kdih.main --config=configs/cifar100.py:runlocal --workdir=/tmp/smoke
    python -m kdih.main --config=configs/cifar100.py:recipe=repdistiller --workdir=runs/cifar100-rd
"""
from kdih import config_lib


def get_config(arg=None):
  """`arg`: `runlocal` for a smoke test, `recipe=paper|repdistiller`."""
  arg = config_lib.parse_arg(arg, runlocal=False, recipe='paper')
  config = config_lib.base(arg.recipe)
  config.data.name = 'cifar100'
  config.data.update(mean=(0.507, 0.487, 0.441), std=(0.267, 0.256, 0.276))
  config.teacher.name = 'resnet110'
  config.student.name = 'resnet8'
  if arg.runlocal:
    config_lib.run_local(config)
  return config
