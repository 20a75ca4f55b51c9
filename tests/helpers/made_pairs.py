"""Comparisons, made up: pairs as `kdih.report.aggregate.compare` returns them."""
from kdih.report.aggregate import Gain, Pair, Row
from kdih.report.published import Published

METHODS = ('ce', 'kd', 'kd_matched', 'dih', 'dih_mean', 'fitnets', 'at', 'crd', 'dkd', 'takd',
           'dml', 'tofd', 'mhkd', 'sp', 'cc', 'vid', 'rkd', 'pkt', 'ft', 'nst', 'ab', 'reviewkd',
           'dih_learnt', 'dih_std', 'dih_crd')


def row(method: str, top1: float, baselines: dict[str, float], seeds=(30, 50, 67)) -> Row:
  """A row whose gains are the differences to `baselines`, {method: top-1 in percent}."""
  several = len(seeds) > 1
  gains = {name: Gain(top1 - other, 0.15 if several else None, len(seeds))
           for name, other in baselines.items() if name != method}
  return Row(method=method, options={'kind': method}, seeds=tuple(seeds), mean=top1,
             std=0.25 if several else None, best_mean=top1 + 0.1,
             best_std=0.2 if several else None, gains=gains, published=())


def pair(
    teacher: str = 'resnet110', student: str = 'resnet20', methods=METHODS[:9], seeds=(30, 50, 67),
    lowest: float = 69.06, members: int = 4, parameters=(1736564, 278324), **others
) -> Pair:
  """A pair with a row for each of `methods`, 0.37 points apart and shuffled."""
  top1 = {name: lowest + 0.37 * (at * 7 % 11) for at, name in enumerate(methods)}
  baselines = {name: top1[name] for name in ('ce', 'kd', 'kd_matched') if name in top1}
  costs = {role: {'parameters': count, 'flops': count and 147 * count}
           for role, count in zip(('teacher', 'student'), parameters, strict=True)}
  fields = dict(
      data='cifar100', teacher=teacher, student=student, protocol='{"seed": 1}',
      teacher_top1=74.31, teacher_published=(Published(74.31, 'RepDistiller', 'last epoch'),),
      costs=costs, heads=heads(members) if members else None,
      rows=tuple(row(name, value, baselines, seeds) for name, value in top1.items()))
  return Pair(**{**fields, **others})


def heads(members: int) -> dict:
  """What the heads phase reports, for a cohort of so many members."""
  names = [*(f'stage{at + 1}' for at in range(members - 1)), 'final']
  top1 = {name: 0.35 + 0.4 * (at + 1) / members for at, name in enumerate(names)}
  analysed = {name: {'entropy': 2.2 - at / members, 'ece': 0.21 - 0.1 * at / members, 'bins': []}
              for at, name in enumerate(names)}
  matrix = [[1 - abs(a - b) / (members + 2) for b in range(members)] for a in range(members)]
  without = {'none': 0.76, **{name: 0.76 - 0.004 * (at - 1) for at, name in enumerate(names)}}
  return {
      'members': {name: {'val': None, **dict.fromkeys(('test_last', 'test_best_val'),
                                                      {'top1': share})}
                  for name, share in {**top1, 'mean': 0.76}.items()},
      'analysis': {'members': analysed, 'agreement': {'names': names, 'matrix': matrix},
                   'without': without}}


def eight_pairs() -> list[Pair]:
  """Pairs of one data set with all methods; students and teachers recur."""
  sizes = {'resnet110': 1736564, 'resnet8': 83892, 'resnet14': 181108, 'resnet20': 278324,
           'resnet34': 21328292, 'resnet18': 11220132, 'vgg11': 9277284, 'wrn_28_2': 1481252}
  names = [('resnet110', 'resnet8'), ('resnet110', 'resnet14'), ('resnet110', 'resnet20'),
           ('resnet34', 'resnet18'), ('resnet34', 'vgg11'), ('resnet34', 'wrn_28_2'),
           ('resnet18', 'vgg11'), ('vgg11', 'wrn_28_2')]
  return [pair(teacher, student, METHODS, lowest=60 + at, members=3 + at,
               parameters=(sizes[teacher], sizes[student]))
          for at, (teacher, student) in enumerate(names)]
