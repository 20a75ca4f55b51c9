"""The comparison of the DIH paper as one sweep: its models, its methods and its seeds.

    python -m kdih.sweep --config=configs/paper.py:table=cifar100 --workdir=runs/paper --dry_run
    python -m kdih.sweep --config=configs/paper.py:table=cifar100 --workdir=runs/paper

`table` is cifar10, cifar100 or tiny_imagenet. The second command can be started on several
machines that share the workdir; they divide the runs among themselves. The first command estimates
the time, which itself takes minutes. The sweep was not run with kdih, and no accuracy is known.

The models are those of the authors' code, each with smaller ones as students. The paper's result
tables were not available, and which of these pairs they contain is not known. A method that does
not fit a pair is left out, and the sweep logs the reason.
"""
from kdih import errors
from kdih.config import arguments, dataset_presets, fields, recipes

_TINY = ('resnet110:resnet8', 'resnet110:resnet14', 'resnet110:resnet20')
_LARGE = ('resnet34:resnet18', 'resnet34:vgg11', 'resnet34:wrn_28_2', 'resnet18:vgg11',
          'resnet18:wrn_28_2', 'vgg11:wrn_28_2')
_PAIRS = {'cifar10': (*_TINY, *_LARGE), 'cifar100': (*_TINY, *_LARGE), 'tiny_imagenet': _LARGE}
# The methods of the paper, and two controls: KD with the loss scale of DIH, and the teacher in the
# place of every head. They show whether a gain of DIH comes from the heads.
_METHODS = ('ce', 'kd', 'fitnets', 'takd', 'at', 'crd', 'tofd', 'mhkd', 'dml', 'dih',
            'kd_matched', 'dih_teacher')


def get_config(arg=None):
  """Returns the config.

  Args:
    arg: `table=cifar10`, `table=cifar100` or `table=tiny_imagenet`; `recipe=paper` or
      `recipe=repdistiller`; `runlocal` for a smoke test.
  """
  arg = arguments.parse_arg(arg, table='cifar100', recipe='paper', runlocal=False)
  if arg.table not in _PAIRS:
    raise errors.unknown("the config's argument table", arg.table, _PAIRS)
  # The recipe of every phase, and the seeds 30, 50 and 67 of the DIH code.
  config = fields.base(arg.recipe)
  dataset_presets.use(config, arg.table)
  # Every pair is trained by every method with every seed.
  config.sweep.update(pairs=_PAIRS[arg.table], methods=_METHODS)
  if arg.table == 'tiny_imagenet':
    # The default assistant, resnet20, is smaller than the students of this table.
    config.methods.takd.chain = ('resnet18',)
  if arg.runlocal:
    recipes.run_local(config)
    # One pair and one seed.
    config.sweep.update(pairs=('resnet14:resnet8',), seeds=(30,))
  return config
