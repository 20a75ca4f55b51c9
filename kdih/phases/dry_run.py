"""What a run will take: its steps are compiled and timed on made images, and nothing is written."""
import dataclasses
import itertools
import logging
import math
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from kdih import errors
from kdih.data.made import made_splits
from kdih.data.splits import Splits
from kdih.models import cost as model_cost
from kdih.phases import cache_plan, memory, step_cost
from kdih.phases.blank import BlankRun, Step
from kdih.phases.networks import Networks
from kdih.phases.problem import Problem
from kdih.phases.step_cost import Cost
from kdih.phases.teacher import predict_as
from kdih.runtime import devices, environment
from kdih.training import steps_per_call
from kdih.training.together import Students

if TYPE_CHECKING:
  import ml_collections

logger = logging.getLogger(__name__)

_CALLS = 8  # Of a compiled step, of which all but the first are timed.
# By whose speed a kind of entry is scaled: by the first of these that was measured.
_LIKE = {'teacher': ('teacher', 'student', 'heads'), 'heads': ('heads', 'teacher', 'student'),
         'student': ('student', 'teacher', 'heads'), 'cache': ('teacher', 'student', 'heads')}
_LONG_ENOUGH = 3.0  # Seconds; no further call is timed after them.


@dataclasses.dataclass(frozen=True)
class Planned:
  """A phase that is left to do, or those of several students that are trained as one program.

  Attributes:
    config: of its run.
    built: the networks of the run.
    phases: 'teacher', 'heads' or 'student/NAME'; several of students alone.
    pair: whose phase it is in a sweep, under which it is listed: 'TEACHER -> STUDENT', 'TEACHER'.
    runs: how often there is such a phase, as with several seeds.
  """

  config: 'ml_collections.ConfigDict'
  built: Networks
  phases: tuple[str, ...]
  pair: str = ''
  runs: int = 1


@dataclasses.dataclass(frozen=True)
class Measured:
  """A step that was compiled and timed.

  Attributes:
    seconds: of one update.
    compiling: seconds.
    memory: bytes that it takes of a device, with the data set.
  """

  seconds: float
  compiling: float
  memory: int


@dataclasses.dataclass
class Entry:
  """A part of a phase: training, or the making of a cache.

  Attributes:
    pair: see `Planned`.
    phase: its name, for people.
    model: what learns, likewise.
    runs: how often.
    cost: of an update, on one device; of a cache nothing.
    resident: bytes of a device that are taken from step to step.
    other_flops: of evaluations or of the making of a cache, over all devices.
    parameters: how many learn.
    steps: updates; None where the number of images, on which it depends, is not known.
    length: the same as the config says it.
    problems: makes the training problem of each student that learns in it.
    asks: see `Step`.
    measured: None where it is scaled from others.
    failed: why it could not be measured.
  """

  pair: str
  phase: str
  model: str
  runs: int
  cost: Cost
  resident: int
  other_flops: int
  parameters: int = 0
  steps: int | None = 0
  length: str = ''
  problems: Callable[[], list[Problem]] | None = None
  asks: Hashable = None
  measured: Measured | None = None
  failed: str = ''

  @property
  def kind(self) -> str:
    """'teacher', 'heads', 'student' or 'cache'."""
    return self.phase.replace('/', ' ').split()[0]


def describe(planned: Sequence[Planned], images: dict[str, int], seconds: float) -> str:
  """Returns a table of what each phase takes, for people.

  Args:
    planned: what is left to do.
    images: {'train', 'validation', 'test'}: how many there are; {} where that is not known.
    seconds: after which no further step is measured; 0 measures none.
  """
  if not planned:
    return 'nothing is left to do: every phase is finished'
  begun, config, spec = time.perf_counter(), planned[0].config, planned[0].built.spec
  if config.compute.keep_freed_memory:
    environment.keep_freed_memory()  # As in the run: steps are faster with it.
  count = images.get('train', 0) + images.get('validation', 0) or _enough(config)
  splits = made_splits(spec, count, images.get('test', 1), loader=config.data.loader)
  entries = list(_Plan(planned, images, splits).entries())
  if seconds:
    _measure(entries, begun + seconds)
  return '\n'.join([*_introduction(planned, images), *_table(entries),
                    *_explanation(planned, entries, images)])


def _enough(config: 'ml_collections.ConfigDict') -> int:
  """Returns how many images stand for a data set of unknown size: those of two batches."""
  batch = max(train.global_batch_size for train in (
      config.teacher.train, config.heads.train, config.student.train, config.student.prepare))
  return math.ceil(2 * batch / (1 - config.data.validation_fraction)) + 1


class _Plan:
  """The entries of what is left to do.

  Args:
    planned: see `describe`.
    images: likewise.
    splits: made images.
  """

  def __init__(self, planned: Sequence[Planned], images: dict[str, int], splits: Splits):
    self._planned, self._images, self._splits = planned, images, splits
    self._blank: dict[tuple[int, bool], BlankRun] = {}
    self._signals: dict[int, step_cost.SignalCosts] = {}
    self._costs: dict[Hashable, Cost] = {}
    self._cached: set[Hashable] = set()

  def entries(self) -> Iterator[Entry]:
    """Yields them in the order in which they will be done."""
    for planned in self._planned:
      run = self._run(planned, shapes=True)
      steps = [list(run.steps(phase)) for phase in planned.phases]
      runs, together = planned.runs, list(zip(*steps, strict=True))
      # Chains are not trained together: each seed has assistants, and so teachers, of its own.
      if any(step.phase.endswith('assistant1') for step in steps[0]):
        runs, together = runs * len(steps), [(step,) for step in steps[0]]
      for group in together:
        yield from self._cache(planned, group[0])
        yield self._training(planned, group, runs)

  def _run(self, planned: Planned, *, shapes: bool) -> BlankRun:
    """Returns the blank run of a phase, which the phases of the same networks share."""
    key = id(planned.built), shapes
    if key not in self._blank:
      self._blank[key] = BlankRun(planned.config, planned.built, self._splits, shapes=shapes)
    return self._blank[key]

  def _training(self, planned: Planned, group: Sequence[Step], runs: int) -> Entry:
    """Returns the training of one learner, or of several as one program that asks teachers once."""
    run, step, several = self._run(planned, shapes=True), group[0], len(group)
    problem = step.problem()
    train = problem.train
    asked, signal = self._signals.setdefault(
        id(planned.built), step_cost.SignalCosts()).of(step.asks, problem)
    learnt = step_cost.of_loss(problem, signal, gradient=True)
    need = memory.least(run, step, problem, asked + learnt)
    known = bool(self._images) or train.unit == 'steps'

    def problems() -> list[Problem]:
      real = self._run(planned, shapes=False)
      steps = {one.phase: one for phase in planned.phases for one in real.steps(phase)}
      made = {one.phase: steps[one.phase].problem() for one in group}  # Seeds share their step.
      return [made[one.phase] for one in group]

    return Entry(
        planned.pair, step.phase + (f', {several} together' if several > 1 else ''), step.model,
        runs, sum([learnt] * several, asked), need.resident + (several - 1) * need.learnt,
        several * self._evaluated(planned, problem, step),
        several * model_cost.count_parameters(problem.variables['params']),
        problem.schedule(step.phase).total_steps if known else None,
        f'{train.length:g} {train.unit}', problems, step.asks)

  def _once(self, key: Hashable, find: Callable[[], Cost]) -> Cost:
    """Returns what several phases share, which is traced for the first of them."""
    if key not in self._costs:
      self._costs[key] = find()
    return self._costs[key]

  def _evaluated(self, planned: Planned, problem: Problem, step: Step) -> int:
    """Returns the FLOPs of a learner's evaluations, see `Experiment.measure`."""
    schedule, role = problem.schedule(step.phase), step.phase.split('/')[0]
    times = -(-schedule.total_steps // schedule.evaluate_every)
    validation, test = self._images.get('validation', 0), self._images.get('test', 0)
    image = jax.ShapeDtypeStruct((1, *problem.image_shape), jnp.float32)
    own = self._once((id(planned.built), role, step.model), lambda: step_cost.cost(
        problem.task.predict, problem.variables, problem.task.frozen, image)).flops
    if step.phase.endswith('/prepare'):
      return own * times * validation
    if role == 'heads':  # Their weights and their analysis look at each split once more.
      return own * ((times + 2) * validation + 3 * test)
    if role == 'teacher':
      return own * ((times + 1) * validation + 2 * test)
    return own * ((times + 1) * validation + 2 * test) + 2 * test * self._teacher(planned).flops

  def _teacher(self, planned: Planned) -> Cost:
    """Returns the cost of the teacher's forward pass of one image."""
    def find() -> Cost:
      module, variables = planned.built.teacher, planned.built.teacher_variables
      image = jax.ShapeDtypeStruct((1, *planned.built.spec.image_shape), jnp.float32)
      return step_cost.cost(predict_as('teacher', module), variables, {}, image)

    return self._once((id(planned.built), 'teacher', planned.config.teacher.name), find)

  def _cache(self, planned: Planned, step: Step) -> Iterator[Entry]:
    """Yields the making of the cache that a step learns from, unless an earlier one has made it."""
    run, built = self._run(planned, shapes=True), planned.built
    if step.cached is None:
      return
    if step.phase == 'heads':
      taught_by, kind = 'taps', cache_plan.taps_kind(built)
    else:
      name = step.phase.removeprefix('student/')
      taught_by, kind = built.methods[name].taught_by, cache_plan.summary(built, name).name
    if (key := (planned.config.teacher.name, taught_by, kind)) in self._cached:
      return
    self._cached.add(key)
    count, slots, width = run.table_shape(step.cached)
    flops = self._teacher(planned).flops
    if taught_by == 'cohort':  # The heads are as large as the features that they read.
      flops += 2 * built.spec.num_classes * sum(map(math.prod, built.taps.values()))
    yield Entry(planned.pair, f'cache for {step.phase}', f'{slots:,} views of {width:,} numbers', 1,
                Cost(), run.table_bytes(step.cached),
                flops * count * slots if self._images else 0)


def _measure(entries: Sequence[Entry], deadline: float) -> None:
  """Measures steps, the most telling ones first, until there is no time for another one."""
  limit, slowest = memory.of_device(), 0.0  # The latter in seconds for an operation of a step.
  for number, entry in enumerate(_by_importance(entries)):
    if entry.resident + entry.cost.largest > limit:
      continue
    expected = slowest * entry.cost.equations
    # Several processes compute each step together, and so decide together.
    if not devices.from_first_process(number == 0 or time.perf_counter() + expected < deadline):
      continue
    logger.info(f'dry run: measures {f"{entry.pair}, " * bool(entry.pair)}{entry.phase}')
    begun = time.perf_counter()
    try:
      with memory.told_in_a_line(entry.phase):
        entry.measured = _measured(entry)
    except errors.TrainingError as error:
      entry.failed = str(error)
    finally:
      jax.clear_caches()
    slowest = max(slowest, (time.perf_counter() - begun) / entry.cost.equations)


def _by_importance(entries: Sequence[Entry]) -> list[Entry]:
  """Returns what can be measured: first, of each pair, teacher, heads and the most telling student.
  """
  trained = [entry for entry in entries if entry.problems]
  first = []
  for _, of_pair in itertools.groupby(trained, key=lambda entry: entry.pair):
    by_kind: dict[str, list[Entry]] = {}
    for entry in of_pair:
      by_kind.setdefault(entry.kind, []).append(entry)
    first += [max(alike, key=lambda entry: (entry.asks == 'cohort', entry.cost.flops))
              for alike in by_kind.values()]
  chosen = {id(entry) for entry in first}
  return first + [entry for entry in trained if id(entry) not in chosen]


def _measured(entry: Entry) -> Measured:
  """Compiles the step of an entry, and times it."""
  assert entry.problems, 'what has no step is not measured'
  problems = entry.problems()
  problem, config = problems[0], problems[0].config
  schedule = problem.schedule(entry.phase)
  updates = next(steps_per_call.sizes(
      0, schedule.total_steps, schedule.evaluate_every, schedule.per_call))
  students = Students([each.train_step for each in problems], config.sweep.together_by) if (
      len(problems) > 1) else None
  states: Any = [each.state(each.variables, config.seed) for each in problems]
  state, frozen = devices.replicate(
      (students.join(states) if students else states[0], problem.task.frozen))
  resident, feeds = problem.resident, problem.feeds(0, [updates] * _CALLS)
  feed = next(feeds)
  begun = time.perf_counter()
  step: Any = problem.compiled(students)
  compiled = step.lower(state, frozen, resident, feed).compile()
  compiling, times = time.perf_counter() - begun, []
  for fed in itertools.chain([feed], feeds):
    begun = time.perf_counter()
    state, metrics = compiled(state, frozen, resident, fed)
    jax.block_until_ready((state, metrics))
    times.append(time.perf_counter() - begun)
    if sum(times[1:]) > _LONG_ENOUGH:
      break
  found = compiled.memory_analysis()
  taken = (found.argument_size_in_bytes + found.temp_size_in_bytes + found.output_size_in_bytes
           - found.alias_size_in_bytes)
  return Measured(statistics.median(times[1:]) / updates, compiling,
                  taken + memory.of_images(problem, ('test',)))


@dataclasses.dataclass(frozen=True)
class _Estimate:
  """What an entry takes: seconds of a step, of all of a run, of compiling; bytes of a device.

  Times are None where nothing was measured, or the number of steps is not known.
  """

  step: float | None
  total: float | None
  compiling: float | None
  memory: int


def _estimate(entry: Entry, entries: Sequence[Entry]) -> _Estimate:
  """Returns what an entry takes: as it was measured, else as the measured one that is nearest."""
  nearest = entry if entry.measured else _nearest(entry, entries)
  measured = nearest and nearest.measured
  if not (nearest and measured):
    return _Estimate(None, None, None, entry.resident + entry.cost.products)
  speed = nearest.cost.flops / measured.seconds
  others = entry.other_flops / speed / devices.num_devices()
  if entry.problems is None:
    return _Estimate(None, others or None, 0.0, entry.resident)
  step = entry.cost.flops / speed
  beside = max(measured.memory - nearest.resident, 0) / max(nearest.cost.products, 1)
  return _Estimate(
      step, None if entry.steps is None else entry.steps * step + others,
      measured.compiling * entry.cost.equations / nearest.cost.equations,
      entry.resident + round(beside * entry.cost.products) if nearest is not entry else
      measured.memory)


def _nearest(entry: Entry, entries: Sequence[Entry]) -> Entry | None:
  """Returns the measured entry that tells most of one that is not.

  It is of like kind, as much taught by a teacher that is asked, and has most nearly its FLOPs.
  """
  def distance(other: Entry) -> tuple[int, bool, float]:
    flops = entry.cost.flops or entry.other_flops
    return (_LIKE[entry.kind].index(other.kind), (entry.asks is None) != (other.asks is None),
            abs(math.log(max(flops, 1) / max(other.cost.flops, 1))))

  return min((other for other in entries if other.measured), key=distance, default=None)


def _introduction(planned: Sequence[Planned], images: dict[str, int]) -> Iterator[str]:
  spec, count = planned[0].built.spec, devices.num_devices()
  counted = (', '.join(f'{images[split]:,} to {verb} with' for split, verb in (
      ('train', 'train'), ('validation', 'validate'), ('test', 'test'))) if images
             else 'how many is not known before it is prepared')
  side = 'x'.join(map(str, spec.image_shape))
  yield f'data: {spec.name}, {side}, {spec.num_classes} classes; images: {counted}'
  yield (f'devices: {count} x {jax.devices()[0].device_kind}, each with '
         f'{memory.in_words(memory.of_device())} of memory')


def _table(entries: Sequence[Entry]) -> Iterator[str]:
  """Yields a line for each entry, and one for all."""
  titles = ('phase', 'model', 'parameters', 'steps', 'a step', 'in all', 'memory', 'runs')
  rows: list[Sequence[str]] = [titles]
  total, scaled, open_ = 0.0, False, False
  heading = ''
  for entry in entries:
    found, mark = _estimate(entry, entries), '' if entry.measured else '~'
    if entry.pair != heading:
      heading = entry.pair
      rows.append((f'{heading}:',))
    steps = entry.length if entry.steps is None else f'{entry.steps:,}'
    rows.append((
        entry.phase, entry.model, f'{entry.parameters:,}' if entry.parameters else '',
        steps if entry.problems else '', _marked(mark, found.step) if entry.problems else '',
        _marked(mark, found.total), mark + memory.in_words(found.memory), f'x {entry.runs}'))
    total += entry.runs * (found.total or 0)
    scaled, open_ = scaled or bool(mark), open_ or found.total is None
  widths = [max(len(row[column]) for row in rows if len(row) > 1) for column in range(len(titles))]
  yield ''
  for row in rows:
    if len(row) == 1:
      yield f'\n{row[0]}'
    else:
      yield '  '.join(cell.ljust(width) if column < 2 else cell.rjust(width) for
                      column, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
  yield ''
  if open_:
    yield 'in all: not known'
  else:
    yield f'in all: {_marked("~" * scaled, total)}'


def _marked(mark: str, seconds: float | None) -> str:
  """Returns a time for people, '?' where it is not known."""
  if seconds is None:
    return '?'
  for unit, size in (('days', 86400), ('hours', 3600), ('minutes', 60)):
    if seconds >= 2 * size:
      return f'{mark}{seconds / size:.1f} {unit}'
  return f'{mark}{seconds:.1f} s' if seconds >= 1 else f'{mark}{1000 * seconds:.1f} ms'


def _explanation(
    planned: Sequence[Planned], entries: Sequence[Entry], images: dict[str, int]
) -> Iterator[str]:
  """Yields what the table does not say, a line each."""
  steps = [entry for entry in entries if entry.problems]
  measured = [entry for entry in steps if entry.measured]
  if not measured:
    yield ('No step was measured: times are not known, and memory is a rough guess. '
           '--dry_run_seconds=120 measures for two minutes.')
  else:
    if len(measured) < len(entries):
      yield (f'{len(measured)} of {len(steps)} steps were compiled and timed here. ~ marks what is '
             'scaled by FLOPs from the nearest of them.')
    compiling = sum(_estimate(entry, entries).compiling or 0 for entry in steps)
    yield ('In all: with evaluations, scaled by FLOPs; without compiling, for the steps alone '
           f'{_marked("~", compiling)} where no earlier')
    yield ('run has compiled the same; without the start, preparing and reading the data, '
           'checkpoints, and the evaluation')
    yield 'of a teacher or heads that exist.'
  if not images:
    yield (f'{planned[0].built.spec.name} is not prepared, and how many images it has is not '
           'known: an epoch is as many steps as')
    yield 'there are batches of images to train with. The memory is without the images.'
  limit = memory.of_device()
  large = [entry.phase for entry in entries if _estimate(entry, entries).memory > limit]
  if large:
    yield (f'More memory than a device has: {", ".join(dict.fromkeys(large))}. '
           'config.compute.accumulate and config.compute.remat save some.')
  yield from (entry.failed for entry in entries if entry.failed)
  yield 'Nothing was trained or written.'
