"""Comparisons of methods: the runs of several seeds averaged, pair by pair."""
import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import scipy  # Its `stats` takes a second to import, and is imported when it is first used.

from kdih.config import method_presets
from kdih.config.schema import flat
from kdih.report import published
from kdih.report.published import Published


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """One finished student, as its result files describe it.

  Attributes:
    path: the workdir in which the student was trained.
    data: name of the data set.
    teacher: name of the teacher's model.
    student: name of the student's model.
    method: name of the entry of `config.methods`.
    seed: the seed of the run.
    protocol: what two runs must have in common to be compared, as JSON: the fields of the config
      that `kdih.config.protocol.averaged` names, the fingerprint of the teacher, and the changes
      that were accepted when the run was resumed.
    settings: options of the method and of the methods that it is a sum of.
    result: the content of the student's `result.json`.
    teacher_result: the content of the teacher's `result.json`; None if there is no teacher, or if
      the teacher was trained again later.
    heads_result: the same for the heads.
    provenance: lines with the command, the version of the code and the machine.
    takes_heads: whether the run was given heads instead of training them.
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
    """Returns the fingerprint of the heads that taught the student, else of those on disk now."""
    return (teacher_fingerprints(self.result).get('heads')
            or (self.heads_result or {}).get('fingerprint'))

  def differences(self, other: 'Run') -> list[str]:
    """Returns why this run cannot be compared with another run of the same teacher and student.

    Results of an earlier version of kdih lack some of this information. What only one of the two
    runs records is not compared, nor are computations that two versions of jax traced.

    Returns:
      The names of the fields of the protocol that differ; 'heads' if a run was given heads that the
      other run does not have; 'data' if the content of the data sets differs; 'data.folder' if the
      folder differs and the content is unknown; 'computation' if the code of the models differs.
    """
    names = list(_differing_fields(self.protocol, other.protocol))
    ours, theirs = (run.result.get('identity') or {} for run in (self, other))
    if (self.takes_heads or other.takes_heads) and _differ(self.heads, other.heads):
      names.append('heads')
    if _differ(ours.get('data'), theirs.get('data')):
      names.append('data')
    if not (ours.get('data') and theirs.get('data')) and self.folder != other.folder:
      names.append('data.folder')
    if _traced_differently(ours, theirs, 'models'):
      names.append('computation')
    return names

  def method_differences(self, other: 'Run') -> list[str]:
    """Returns why this run cannot be averaged with another run of the same method.

    Returns:
      The names of the options that differ; 'computation' if the code of the method differs.
    """
    settings, others = (json.dumps(run.settings, sort_keys=True) for run in (self, other))
    names = list(_differing_fields(settings, others))
    if _traced_differently(self.result.get('identity') or {}, other.result.get('identity') or {},
                           'method'):
      names.append('computation')
    return names


def teacher_fingerprints(result: dict) -> dict[str, str]:
  """Returns the fingerprints of the teacher and heads that a student's result records.

  Returns:
    {'variables', 'heads'}; {} for a result of an earlier version of kdih.
  """
  return (result.get('identity') or {}).get('teacher') or {}


def _differ(one: Any, other: Any) -> bool:
  """Returns whether both are known and differ."""
  return one is not None and other is not None and one != other


def _traced_differently(one: dict, other: dict, part: str) -> bool:
  """Returns whether the same version of jax traced different programs for `part`."""
  one, other = one.get('computation') or {}, other.get('computation') or {}
  return one.get('jax') == other.get('jax') and _differ(one.get(part), other.get(part))


@dataclasses.dataclass(frozen=True)
class Gain:
  """The mean gain over another method, paired by seed, in points of test top-1.

  Attributes:
    mean: the mean of the differences over the seeds that both methods were run with.
    standard_error: the standard error of that mean; None for one seed.
    n: the number of these seeds.
  """

  mean: float
  standard_error: float | None
  n: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """One method on one pair. Accuracies are in percent.

  Attributes:
    method: name of the method.
    options: options of the method and of the methods that it is a sum of.
    seeds: the seeds that the method was run with.
    mean: mean test top-1 over the seeds, after the last step.
    std: standard deviation of the same (of a sample, n - 1); None for one seed.
    best_mean: mean test top-1 with the variables that did best on the validation split; None if
      there is no validation split.
    best_std: standard deviation of the same; None for one seed.
    gains: {method: the gain over it}, for the other methods of `BASELINES` that were run.
    published: numbers from the literature for this pair and method.
    val_mean: mean validation top-1 of the same variables; None if there is no validation split.
  """

  method: str
  options: dict[str, Any]
  seeds: tuple[int, ...]
  mean: float
  std: float | None
  best_mean: float | None
  best_std: float | None
  gains: dict[str, Gain]
  published: tuple[Published, ...]
  val_mean: float | None = None

  @property
  def n(self) -> int:
    """Returns the number of seeds."""
    return len(self.seeds)

  @property
  def family(self) -> str:
    """Returns what all variants of the method share, see `kdih.config.method_presets.family`."""
    return method_presets.family(self.options)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
  """All methods by which one teacher taught one student under one protocol.

  Attributes:
    data: name of the data set.
    teacher: name of the teacher's model.
    student: name of the student's model.
    protocol: see `Run.protocol`.
    teacher_top1: test top-1 of the teacher after the last step, in percent; None if there is none.
    teacher_published: numbers from the literature for the teacher.
    costs: {'teacher' | 'student': {'parameters', 'flops'}}; a cost is None if it is unknown.
    heads: `result.json` of the heads; None if there are no heads.
    rows: a row for each method.
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
    """Returns whether all seeds saw the same batches, because `config.data.order_seed` was set."""
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
    The pairs, in the order of `runs`, and a line for each problem: runs that cannot be compared
    with others, and seeds that are missing. The rows of a pair are the baselines, then the methods
    of `method_presets`, then all others in the order of `runs`.
  """
  runs_of_pair: dict[tuple[str, str, str], list[Run]] = {}
  for run in runs:
    runs_of_pair.setdefault((run.data, run.teacher, run.student), []).append(run)
  pairs, problems = [], []
  for (data, teacher, student), pair_runs in runs_of_pair.items():
    name = f'{data}: {teacher} -> {student}'
    protocols = _groups(pair_runs, Run.differences)
    if len(protocols) > 1:
      differing = dict.fromkeys(itertools.chain.from_iterable(
          protocols[0][0].differences(group[0]) for group in protocols[1:]))
      problems.append(f'{name}: runs under {len(protocols)} protocols are not compared with each '
                      f'other; they differ in {", ".join(differing)}')
    for number, group in enumerate(protocols, 1):
      which = f' (protocol {number} of {len(protocols)})' if len(protocols) > 1 else ''
      methods = _by_method(group, name + which, problems)
      _note_missing_seeds(methods, name + which, problems)
      pairs.append(_pair(methods))
  return pairs, problems


def _groups(
    runs: Sequence[Run], differences: Callable[[Run, Run], list[str]]
) -> list[list[Run]]:
  """Returns the runs in groups; no two runs of a group have differences."""
  groups: list[list[Run]] = []
  for run in runs:
    fitting = (group for group in groups if not any(differences(run, other) for other in group))
    if (group := next(fitting, None)) is None:
      groups.append(group := [])
    group.append(run)
  return groups


@functools.cache
def _differing_fields(first: str, second: str) -> list[str]:
  """Returns the names of the fields in which two JSON objects differ.

  The teacher's fingerprint is compared only if both objects have it.
  """
  one, other = (dict(flat(json.loads(text))) for text in (first, second))
  return [name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)
          and (name != 'teacher' or _differ(one.get(name), other.get(name)))]


def _by_method(runs: list[Run], name: str, problems: list[str]) -> dict[str, list[Run]]:
  """Returns {method: its runs, by seed}.

  If runs of a method have different options, the largest group with the same options is returned.
  """
  all_runs: dict[str, list[Run]] = {}
  for run in runs:
    all_runs.setdefault(run.method, []).append(run)
  known = [method for method in _ORDER if method in all_runs]
  methods = {}
  for method in dict.fromkeys((*known, *all_runs)):
    most = max(_groups(all_runs[method], Run.method_differences), key=len)
    if others := [run for run in all_runs[method] if run not in most]:
      differing = dict.fromkeys(itertools.chain.from_iterable(
          most[0].method_differences(run) for run in others))
      problems.append(f'{name}: {method} has other {", ".join(differing)} for '
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
  runs = list(itertools.chain.from_iterable(methods.values()))
  one = runs[0]
  teacher = next((run.teacher_result for run in runs if run.teacher_result), None)
  return Pair(
      data=one.data, teacher=one.teacher, student=one.student, protocol=one.protocol,
      teacher_top1=None if teacher is None else 100 * teacher['test_last']['top1'],
      teacher_published=published.alone(one.data, one.teacher),
      costs={'teacher': _costs([teacher or {}]), 'student': _costs([run.result for run in runs])},
      heads=next((run.heads_result for run in runs if run.heads_result), None),
      rows=tuple(_row(method, methods) for method in methods))


def _costs(results: list[dict]) -> dict[str, int | None]:
  """Returns {cost: its value in the first result that has it}, None if no result has it."""
  return {cost: next((result[cost] for result in results if result.get(cost) is not None), None)
          for cost in ('parameters', 'flops')}


def _row(method: str, methods: dict[str, list[Run]]) -> Row:
  runs = methods[method]
  last = list(_last(runs).values())
  # The mean is over all runs, or there is none.
  validated = runs if all(run.result['val'] for run in runs) else []
  best = [100 * run.result['test_best_val']['top1'] for run in validated]
  val = [100 * run.result['val']['top1'] for run in validated]
  gains = {baseline: gain for baseline in BASELINES
           if baseline != method and baseline in methods
           and (gain := _gain(runs, methods[baseline]))}
  one = runs[0]
  return Row(
      method=method, options=one.settings, seeds=tuple(run.seed for run in runs),
      mean=float(np.mean(last)), std=_std(last),
      best_mean=float(np.mean(best)) if best else None, best_std=_std(best), gains=gains,
      published=published.taught(one.data, one.teacher, one.student, one.result['method']),
      val_mean=float(np.mean(val)) if val else None)


def _last(runs: list[Run]) -> dict[int, float]:
  """Returns {seed: test top-1 after the last step, in percent}."""
  return {run.seed: 100 * run.result['test_last']['top1'] for run in runs}


def _std(values: list[float]) -> float | None:
  return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _gain(runs: list[Run], baseline: list[Run]) -> Gain | None:
  """Returns the mean gain, paired by seed; None if no seed was run with both methods."""
  top1, baseline_top1 = _last(runs), _last(baseline)
  differences = [top1[seed] - baseline_top1[seed] for seed in top1 if seed in baseline_top1]
  if not differences:
    return None
  error = float(scipy.stats.sem(differences)) if len(differences) > 1 else None
  return Gain(float(np.mean(differences)), error, len(differences))
