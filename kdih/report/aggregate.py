"""Methods compared: what runs of several seeds say together, pair by pair."""
import dataclasses
import functools
import itertools
import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from kdih.config import method_presets
from kdih.config.schema import flat
from kdih.report import published
from kdih.report.published import Published


@dataclasses.dataclass(frozen=True)
class Run:
  """One finished student, as its result files tell of it.

  Attributes:
    path: of the workdir that it was trained in.
    data: name of the data set.
    teacher: name of the model.
    student: name of the model.
    method: name of the entry of `config.methods`.
    seed: of the run.
    protocol: what must be the same for two runs to be compared: the fields of the config that
      `kdih.config.protocol.averaged` names, the teacher's fingerprint, and differences to what it
      was begun with that were accepted; as JSON.
    settings: options of the method, and those of its parts.
    result: its `result.json`.
    teacher_result: that of its teacher; None without one, or where it has been done anew.
    heads_result: that of the heads of its teacher, likewise.
    provenance: lines that say by which command, code and machine it was made.
    takes_heads: whether its heads were not trained for it.
    folder: `config.data.folder`.
  """

  path: str
  data: str
  teacher: str
  student: str
  method: str
  seed: int
  protocol: str
  settings: dict
  result: dict
  teacher_result: dict | None
  heads_result: dict | None
  provenance: tuple[str, ...]
  takes_heads: bool = False
  folder: str = ''

  @property
  def heads(self) -> str | None:
    """Fingerprint of the heads that taught it, or of those that there are now."""
    return taught_by(self.result).get('heads') or (self.heads_result or {}).get('fingerprint')

  def unlike(self, other: 'Run') -> list[str]:
    """Returns what keeps it from being compared with another run of this teacher and student.

    Of the protocol all that differs; 'heads' where one of them took heads that the other has not;
    'data' where the content of the data sets differs, 'data.folder' where one of them does not tell
    of it and the folder differs, and 'computation' where the code of the models does. What else a
    run of an earlier version does not tell is not compared, nor is a computation under another
    version of jax.
    """
    found = list(_differences(self.protocol, other.protocol))
    mine, its = (run.result.get('identity') or {} for run in (self, other))
    if (self.takes_heads or other.takes_heads) and _differ(self.heads, other.heads):
      found.append('heads')
    if _differ(mine.get('data'), its.get('data')):
      found.append('data')
    if not (mine.get('data') and its.get('data')) and self.folder != other.folder:
      found.append('data.folder')
    if _traced_otherwise(mine, its, 'models'):
      found.append('computation')
    return found

  def taught_unlike(self, other: 'Run') -> list[str]:
    """Returns what keeps it from being averaged with another run of its method."""
    mine, its = (json.dumps(run.settings, sort_keys=True) for run in (self, other))
    found = list(_differences(mine, its))
    if _traced_otherwise(self.result.get('identity') or {}, other.result.get('identity') or {},
                         'method'):
      found.append('computation')
    return found


def taught_by(result: dict) -> dict[str, str]:
  """Returns the fingerprints of teacher and heads that a student's result tells of, as
  {'variables', 'heads'}; one of an earlier version tells of none."""
  return (result.get('identity') or {}).get('teacher') or {}


def _differ(mine: Any, its: Any) -> bool:
  """Returns whether both are known and not the same."""
  return mine is not None and its is not None and mine != its


def _traced_otherwise(mine: dict, its: dict, part: str) -> bool:
  mine, its = mine.get('computation') or {}, its.get('computation') or {}
  return mine.get('jax') == its.get('jax') and _differ(mine.get(part), its.get(part))


@dataclasses.dataclass(frozen=True)
class Gain:
  """The mean difference to another method over the seeds that both have, in points of top-1.

  Attributes:
    mean: of the differences.
    standard_error: of that mean; None for one seed.
    n: seeds.
  """

  mean: float
  standard_error: float | None
  n: int


@dataclasses.dataclass(frozen=True)
class Row:
  """One method on one pair. Accuracies are test top-1 in percent.

  Attributes:
    method: its name.
    seeds: those that it was run with.
    mean: after the last step, over the seeds.
    std: its standard deviation (of a sample, n - 1); None for one seed.
    best_mean: of the variables that did best on the validation split; None without one.
    best_std: likewise.
    gains: {method: the gain over it}, of those of `BASELINES` that were run.
    published: numbers for this pair and method.
    val_mean: validation top-1 of those variables; None without a validation split.
    family: the same for all variants of a method, see `kdih.config.method_presets`.
  """

  method: str
  seeds: tuple[int, ...]
  mean: float
  std: float | None
  best_mean: float | None
  best_std: float | None
  gains: dict[str, Gain]
  published: tuple[Published, ...]
  val_mean: float | None = None
  family: str = ''

  @property
  def n(self) -> int:
    """The number of seeds."""
    return len(self.seeds)


@dataclasses.dataclass(frozen=True)
class Pair:
  """All methods by which one teacher taught one student under one protocol.

  Attributes:
    data: name of the data set.
    teacher: name of the model.
    student: name of the model.
    protocol: see `Run.protocol`.
    teacher_top1: test top-1 after the last step in percent, None where there is no teacher.
    teacher_published: numbers for the teacher alone.
    costs: {'teacher' | 'student': {'parameters', 'flops'}}, None where unknown.
    heads: `result.json` of the heads, None where there are none.
    rows: one a method.
  """

  data: str
  teacher: str
  student: str
  protocol: str
  teacher_top1: float | None
  teacher_published: tuple[Published, ...]
  costs: dict[str, dict[str, int | None]]
  heads: dict | None
  rows: tuple[Row, ...]

  @property
  def shares_batches(self) -> bool:
    """Whether several seeds saw the same batches: `config.data.order_seed` was set."""
    order_seed = json.loads(self.protocol).get('data.order_seed')
    return isinstance(order_seed, int) and order_seed >= 0 and any(row.n > 1 for row in self.rows)


BASELINES = ('ce', 'kd', 'kd_matched')
_ORDER = (*BASELINES, 'kd_repdistiller', 'kd_std', 'dkd', 'dkd_std', 'takd', 'dml', 'fitnets',
          'fitnets_one', 'at', 'sp', 'cc', 'vid', 'rkd', 'pkt', 'ft', 'nst', 'ab', 'reviewkd',
          'crd', 'tofd', 'mhkd', 'dih', 'dih_teacher', 'dih_mean', 'dih_once', 'dih_accuracy',
          'dih_learnt', 'dih_std', 'dih_at', 'dih_crd')


def compare(runs: Sequence[Run]) -> tuple[list[Pair], list[str]]:
  """Compares runs, pair by pair and method by method.

  Args:
    runs: from `kdih.report.collect.collect`.

  Returns:
    Pairs in the order in which they are found, and what stands in the way of comparing, a line
    each. Rows come with the baselines first, then known methods, then the others as found.
  """
  of_pair: dict[tuple[str, str, str], list[Run]] = {}
  for run in runs:
    of_pair.setdefault((run.data, run.teacher, run.student), []).append(run)
  pairs, problems = [], []
  for (data, teacher, student), of_it in of_pair.items():
    name = f'{data}: {teacher} -> {student}'
    protocols = _alike(of_it, Run.unlike)
    if len(protocols) > 1:
      apart = dict.fromkeys(itertools.chain.from_iterable(
          protocols[0][0].unlike(found[0]) for found in protocols[1:]))
      problems.append(f'{name}: runs under {len(protocols)} protocols are not compared with each '
                      f'other; they differ in {", ".join(apart)}')
    for number, found in enumerate(protocols, 1):
      which = f' (protocol {number} of {len(protocols)})' if len(protocols) > 1 else ''
      methods = _by_method(found, name + which, problems)
      _note_missing_seeds(methods, name + which, problems)
      pairs.append(_pair(methods))
  return pairs, problems


def _alike(runs: Sequence[Run], unlike: Callable[[Run, Run], list[str]]) -> list[list[Run]]:
  """Returns the runs in groups, in each of which nothing keeps any two apart."""
  groups: list[list[Run]] = []
  for run in runs:
    fitting = (group for group in groups if not any(unlike(run, other) for other in group))
    if (group := next(fitting, None)) is None:
      groups.append(group := [])
    group.append(run)
  return groups


@functools.cache
def _differences(mine: str, its: str) -> list[str]:
  """Returns the names of fields in which two groups of them, as JSON, differ.

  A teacher that one of them does not tell is no difference.
  """
  one, other = (dict(flat(json.loads(text))) for text in (mine, its))
  return [name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)
          and (name != 'teacher' or _differ(one.get(name), other.get(name)))]


def _by_method(runs: list[Run], name: str, problems: list[str]) -> dict[str, list[Run]]:
  """Returns {method: its runs by seed}; of several settings, those that most runs have."""
  found: dict[str, list[Run]] = {}
  for run in runs:
    found.setdefault(run.method, []).append(run)
  known = [method for method in _ORDER if method in found]
  methods = {}
  for method in dict.fromkeys((*known, *found)):
    settings = _alike(found[method], Run.taught_unlike)
    most = max(settings, key=len)
    if others := [run for run in found[method] if run not in most]:
      apart = dict.fromkeys(itertools.chain.from_iterable(
          most[0].taught_unlike(run) for run in others))
      problems.append(f'{name}: {method} has other {", ".join(apart)} for '
                      f'{_seeds(run.seed for run in others)}, left out')
    methods[method] = sorted(most, key=lambda run: run.seed)
  return methods


def _note_missing_seeds(methods: dict[str, list[Run]], name: str, problems: list[str]) -> None:
  seeds = {run.seed for runs in methods.values() for run in runs}
  for method, runs in methods.items():
    if missing := seeds - {run.seed for run in runs}:
      problems.append(f'{name}: {method} lacks {_seeds(missing)}, which other methods have')


def _seeds(seeds: Iterable[int]) -> str:
  numbers = sorted(set(seeds))
  return f'seed{"s" if len(numbers) > 1 else ""} {", ".join(map(str, numbers))}'


def _pair(methods: dict[str, list[Run]]) -> Pair:
  runs = [run for found in methods.values() for run in found]
  one = runs[0]
  teacher = next((run.teacher_result for run in runs if run.teacher_result), None)
  return Pair(
      one.data, one.teacher, one.student, one.protocol,
      teacher_top1=None if teacher is None else 100 * teacher['test_last']['top1'],
      teacher_published=published.alone(one.data, one.teacher),
      costs={'teacher': _costs([teacher or {}]), 'student': _costs([run.result for run in runs])},
      heads=next((run.heads_result for run in runs if run.heads_result), None),
      rows=tuple(_row(method, methods) for method in methods))


def _costs(results: list[dict]) -> dict[str, int | None]:
  """Returns them from the first result that knows them."""
  return {cost: next((result[cost] for result in results if result.get(cost) is not None), None)
          for cost in ('parameters', 'flops')}


def _row(method: str, methods: dict[str, list[Run]]) -> Row:
  runs = methods[method]
  last = list(_last(runs).values())
  # Where one of the runs has no validation split there is no mean over all of them.
  validated = runs if all(run.result['val'] for run in runs) else []
  best = [100 * run.result['test_best_val']['top1'] for run in validated]
  val = [100 * run.result['val']['top1'] for run in validated]
  gains = {baseline: gain for baseline in BASELINES
           if baseline != method and baseline in methods
           and (gain := _gain(runs, methods[baseline]))}
  one = runs[0]
  return Row(
      method, tuple(run.seed for run in runs), mean=statistics.fmean(last), std=_std(last),
      best_mean=statistics.fmean(best) if best else None, best_std=_std(best), gains=gains,
      published=published.taught(one.data, one.teacher, one.student, one.result['method']),
      val_mean=statistics.fmean(val) if val else None,
      family=method_presets.family(one.settings))


def _last(runs: list[Run]) -> dict[int, float]:
  """Returns {seed: test top-1 after the last step, in percent}."""
  return {run.seed: 100 * run.result['test_last']['top1'] for run in runs}


def _std(values: list[float]) -> float | None:
  return statistics.stdev(values) if len(values) > 1 else None


def _gain(runs: list[Run], baseline: list[Run]) -> Gain | None:
  """Returns the mean gain by seed; None where no seed is in both."""
  mine = _last(runs)
  other = _last(baseline)
  differences = [mine[seed] - other[seed] for seed in mine if seed in other]
  if not differences:
    return None
  std = _std(differences)
  error = None if std is None else std / math.sqrt(len(differences))
  return Gain(statistics.fmean(differences), error, len(differences))
