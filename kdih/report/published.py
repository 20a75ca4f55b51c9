"""Numbers from the literature: CIFAR-100 test top-1 in percent, with source and protocol.

The DIH paper's own numbers are missing: its tables were not available.
"""
import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Published:
  """A number from the literature: top-1 in percent, its source, and how it was chosen."""

  top1: float
  source: str
  protocol: str


_REPDISTILLER = 'RepDistiller README'
_MDISTILLER = 'mdistiller README'
_LSKD = 'logit-standardization-KD README'
_TAKD = 'TAKD author, TAKD issue 7'

_LAST = 'last epoch, number of runs not stated'
_BEST = 'best epoch on test'
_SEARCHED = 'one run, its seed found by search; epoch not stated'

# Models that were trained on labels alone: the teachers and students of RepDistiller's table.
_ALONE = {
    'wrn_40_2': 75.61, 'wrn_16_2': 73.26, 'wrn_40_1': 71.98, 'resnet56': 72.34, 'resnet110': 74.31,
    'resnet20': 69.06, 'resnet32': 71.14, 'resnet32x4': 79.42, 'resnet8x4': 72.50, 'vgg13': 74.64,
    'vgg8': 70.36,
}
_ALONE_TAKD = {'resnet110': 72.38, 'resnet8': 61.37}

# For each column of RepDistiller's table, the options that an entry of `config.methods` must have
# to be this method, and a note on how it was run there. Options that are not listed may differ.
_PLAIN_KD = dict(kind='kd', scale='one', gain=1.0, standardise=False)
_PLAIN_DKD = dict(kind='dkd', standardise=False)
_COLUMNS: tuple[tuple[dict[str, Any], str], ...] = (
    (_PLAIN_KD, ', 0.1 CE + 0.9 KL at T 4'),
    (dict(kind='fitnets'), ', CE + 100 hint at once'),
    (dict(kind='at'), ', CE + 1000 AT'),
    (dict(kind='crd'), ', CE + 0.8 CRD'),
)
_TAUGHT = {
    ('wrn_40_2', 'wrn_16_2'): (74.92, 73.58, 74.08, 75.48),
    ('wrn_40_2', 'wrn_40_1'): (73.54, 72.24, 72.77, 74.14),
    ('resnet56', 'resnet20'): (70.66, 69.21, 70.55, 71.16),
    ('resnet110', 'resnet20'): (70.67, 68.99, 70.22, 71.46),
    ('resnet110', 'resnet32'): (73.08, 71.06, 72.31, 73.48),
    ('resnet32x4', 'resnet8x4'): (73.33, 73.50, 73.44, 75.51),
    ('vgg13', 'vgg8'): (72.98, 71.02, 71.43, 73.94),
}
_OTHERS: tuple[tuple[tuple[str, str], dict[str, Any], Published], ...] = (
    (('resnet56', 'resnet20'), _PLAIN_DKD, Published(71.97, _MDISTILLER, _BEST)),
    (('resnet110', 'resnet20'), _PLAIN_DKD, Published(71.06, _LSKD, _BEST)),
    (('resnet110', 'resnet32'), _PLAIN_DKD, Published(74.11, _MDISTILLER, _BEST)),
    (('resnet32x4', 'resnet8x4'), _PLAIN_DKD, Published(76.32, _MDISTILLER, _BEST)),
    (('resnet110', 'resnet8'), _PLAIN_KD, Published(61.41, _TAKD, _SEARCHED)),
    (('resnet110', 'resnet8'), dict(kind='takd', chain=['resnet20']),
     Published(61.82, _TAKD, _SEARCHED)),
)


def alone(data: str, model: str) -> tuple[Published, ...]:
  """Returns numbers for a model that was trained on labels alone."""
  if not _is_cifar100(data):
    return ()
  tables = ((_ALONE, _REPDISTILLER, _LAST),
            (_ALONE_TAKD, _TAKD, 'epoch and number of runs not stated'))
  return tuple(Published(numbers[model], source, protocol)
               for numbers, source, protocol in tables if model in numbers)


def taught(data: str, teacher: str, student: str, method: dict) -> tuple[Published, ...]:
  """Returns numbers for a student that this teacher taught by this method.

  Numbers are matched by the names of the models. The reader must judge from `Published.protocol`
  whether the splits and the recipe are the same.

  Args:
    data: name of the data set, which may carry a version: 'cifar100:3.0.2'.
    teacher: name of the teacher's model.
    student: name of the student's model.
    method: the entry of `config.methods`; for 'ce' the numbers are those of `alone`.
  """
  if method['kind'] == 'ce':
    return alone(data, student)
  if not _is_cifar100(data):
    return ()
  pair = teacher, student
  columns = zip(_COLUMNS, _TAUGHT.get(pair, ()), strict=False)  # Empty for an unknown pair.
  found = [Published(top1, _REPDISTILLER, _LAST + recipe)
           for (options, recipe), top1 in columns if _has(method, options)]
  return (*found, *(number for other, options, number in _OTHERS
                    if other == pair and _has(method, options)))


def _is_cifar100(data: str) -> bool:
  return data.replace(':', '/').split('/')[0] == 'cifar100'


def _has(method: dict, options: dict[str, Any]) -> bool:
  """Returns whether a method has these options; an option that it lacks counts as equal."""
  return all(method.get(name, value) == value for name, value in options.items())
