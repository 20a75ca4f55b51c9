"""The comparison of the DIH paper: its models, its methods, its seeds, as one sweep.

    python -m kdih.sweep --config=configs/paper.py:table=cifar100 --workdir=runs/paper --dry_run
    python -m kdih.sweep --config=configs/paper.py:table=cifar100 --workdir=runs/paper

`table` is cifar10, cifar100 or tiny_imagenet. Start the second command on as many machines as
share the workdir. `--dry_run`, itself minutes, says what it takes: years and decades of a laptop.

The models are those of the authors' code, larger to smaller ones; which of these pairs the
paper's own tables hold could not be looked up. A method that does not fit a pair is left out,
and the sweep says why.
"""
from kdih import errors
from kdih.config import arguments, dataset_presets, fields, recipes

_TINY = ('resnet110:resnet8', 'resnet110:resnet14', 'resnet110:resnet20')
_LARGE = ('resnet34:resnet18', 'resnet34:vgg11', 'resnet34:wrn_28_2', 'resnet18:vgg11',
          'resnet18:wrn_28_2', 'vgg11:wrn_28_2')
_PAIRS = {'cifar10': (*_TINY, *_LARGE), 'cifar100': (*_TINY, *_LARGE), 'tiny_imagenet': _LARGE}
# The paper's, and the controls that its claim needs.
_METHODS = ('ce', 'kd', 'fitnets', 'takd', 'at', 'crd', 'tofd', 'mhkd', 'dml', 'dih',
            'kd_matched', 'dih_teacher')


def get_config(arg=None):
  """`arg`: `table=cifar10|cifar100|tiny_imagenet`, `recipe=paper|repdistiller`, `runlocal`."""
  arg = arguments.parse_arg(arg, table='cifar100', recipe='paper', runlocal=False)
  if arg.table not in _PAIRS:
    raise errors.unknown("the config's argument table", arg.table, _PAIRS)
  config = fields.base(arg.recipe)
  dataset_presets.use(config, arg.table)
  config.sweep.update(pairs=_PAIRS[arg.table], methods=_METHODS)
  if arg.table == 'tiny_imagenet':
    config.methods.takd.chain = ('resnet18',)
  if arg.runlocal:
    recipes.run_local(config)
    config.sweep.update(pairs=('resnet14:resnet8',), seeds=(30,))
  return config
