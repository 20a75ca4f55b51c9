"""Estimates the time and memory of a run from a few steps on made images; writes nothing.

Every step is traced and its FLOPs are counted. The most informative steps are compiled and timed;
the times of the others are scaled from them by FLOPs.
"""
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
import tabulate

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

_CALLS = 8  # Calls of a compiled step. The first one is not timed.
# The kinds of steps whose speed stands for that of a kind which was not measured, best first.
_SCALED_BY = {'teacher': ('teacher', 'student', 'heads'), 'heads': ('heads', 'teacher', 'student'),
              'student': ('student', 'teacher', 'heads'), 'cache': ('teacher', 'student', 'heads')}
_LONG_ENOUGH = 3.0  # Seconds of timed calls, after which no further call is made.


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedPhase:
  """A phase that is not finished, or the phases of several students that are trained together.

  Attributes:
    config: the config of the run.
    built: the networks of the run.
    phases: 'teacher', 'heads' or 'student/NAME'; several names only for students trained together.
    pair: the heading under which a sweep lists the phase: 'TEACHER' or 'TEACHER -> STUDENT'.
    runs: the number of runs with such a phase, for instance one for each seed.
  """

  config: 'ml_collections.ConfigDict'
  built: Networks
  phases: tuple[str, ...]
  pair: str = ''
  runs: int = 1


@dataclasses.dataclass(frozen=True)
class Measurement:
  """Time and memory of a step that was compiled and run.

  Attributes:
    seconds: seconds of one update.
    compiling: seconds of the compilation.
    memory: bytes on a device, with the data set.
  """

  seconds: float
  compiling: float
  memory: int


@dataclasses.dataclass(kw_only=True)
class PhaseEstimate:
  """The cost of the training of a phase or of building a cache, and its measurement.

  Attributes:
    pair: see `PlannedPhase`.
    phase: the name of the phase, as the table shows it.
    model: the trained model, as the table shows it.
    runs: the number of runs with such a phase.
    cost: the cost of an update on one device; zero for a cache.
    resident: bytes on a device that stay allocated between steps.
    other_flops: FLOPs of the evaluations or of building the cache, over all devices.
    parameters: the number of trained parameters.
    steps: the number of updates; None if it depends on an unknown number of images.
    length: the length of the phase, as the config gives it.
    problems: builds the training problem of each learner of the phase; None for a cache.
    signal_source: see `Step`.
    measured: the measurement; None if the estimate is scaled from other measurements.
    failed: the reason why the step could not be measured; '' if there is none.
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
  signal_source: Hashable = None
  measured: Measurement | None = None
  failed: str = ''

  @property
  def kind(self) -> str:
    """Returns 'teacher', 'heads', 'student' or 'cache'."""
    return self.phase.replace('/', ' ').split()[0]


def describe(planned: Sequence[PlannedPhase], images: dict[str, int], seconds: float) -> str:
  """Returns a text with a table of the time and memory of each phase.

  Args:
    planned: the phases that are not finished.
    images: {'train', 'validation', 'test': number of images}; {} if the numbers are not known.
    seconds: the time after which no further step is measured; 0 measures none.
  """
  if not planned:
    return 'Every phase is finished; there is nothing to estimate.'
  begun, config, spec = time.perf_counter(), planned[0].config, planned[0].built.spec
  if config.compute.keep_freed_memory:
    environment.keep_freed_memory()  # The run does the same, and its steps are faster with it.
  count = images.get('train', 0) + images.get('validation', 0) or _enough(config)
  splits = made_splits(spec, count, images.get('test', 1), loader=config.data.loader)
  estimates = list(_Tracer(planned, images, splits).estimates())
  if seconds:
    _measure(estimates, begun + seconds)
  return '\n'.join([*_introduction(planned, images), *_table(estimates),
                    *_explanation(planned, estimates, images)])


def _enough(config: 'ml_collections.ConfigDict') -> int:
  """Returns the number of made images for a data set of unknown size: those of two batches."""
  batch = max(train.global_batch_size for train in (
      config.teacher.train, config.heads.train, config.student.train, config.student.prepare))
  return math.ceil(2 * batch / (1 - config.data.validation_fraction)) + 1


class _Tracer:
  """Traces the steps of the planned phases and counts their cost.

  Args:
    planned: see `describe`.
    images: see `describe`.
    splits: made images.
  """

  def __init__(self, planned: Sequence[PlannedPhase], images: dict[str, int], splits: Splits):
    self._planned, self._images, self._splits = planned, images, splits
    self._blank: dict[tuple[int, bool], BlankRun] = {}
    self._signals: dict[int, step_cost.SignalCosts] = {}
    self._costs: dict[Hashable, Cost] = {}
    self._cached: set[Hashable] = set()

  def estimates(self) -> Iterator[PhaseEstimate]:
    """Yields the estimates of all phases and caches, in the order in which they will be run."""
    for planned in self._planned:
      run = self._run(planned, shapes=True)
      steps = [list(run.steps(phase)) for phase in planned.phases]
      runs, together = planned.runs, list(zip(*steps, strict=True))
      # Students with assistants are not trained together, because their teachers differ by seed.
      if any(step.phase.endswith('assistant1') for step in steps[0]):
        runs, together = runs * len(steps), [(step,) for step in steps[0]]
      for group in together:
        yield from self._cache(planned, group[0])
        yield self._training(planned, group, runs)

  def _run(self, planned: PlannedPhase, *, shapes: bool) -> BlankRun:
    """Returns the blank run of a phase; phases with the same networks share one."""
    key = id(planned.built), shapes
    if key not in self._blank:
      self._blank[key] = BlankRun(planned.config, planned.built, self._splits, shapes=shapes)
    return self._blank[key]

  def _training(self, planned: PlannedPhase, group: Sequence[Step], runs: int) -> PhaseEstimate:
    """Returns the estimate of the training of one learner, or of several learners together.

    Learners that are trained together share one teacher signal.
    """
    run, step, several = self._run(planned, shapes=True), group[0], len(group)
    problem = step.problem()
    train = problem.train
    teacher_cost, signal = self._signals.setdefault(
        id(planned.built), step_cost.SignalCosts()).of(step.signal_source, problem)
    learner_cost = step_cost.of_loss(problem, signal, gradient=True)
    need = memory.least(run, step, problem, teacher_cost + learner_cost)
    known = bool(self._images) or train.unit == 'steps'

    def problems() -> list[Problem]:
      real = self._run(planned, shapes=False)
      steps = {one.phase: one for phase in planned.phases for one in real.steps(phase)}
      by_phase = {one.phase: steps[one.phase].problem() for one in group}  # Shared by the seeds.
      return [by_phase[one.phase] for one in group]

    return PhaseEstimate(
        pair=planned.pair, phase=step.phase + (f', {several} together' if several > 1 else ''),
        model=step.model, runs=runs, cost=sum([learner_cost] * several, teacher_cost),
        resident=need.resident + (several - 1) * need.trained,
        other_flops=several * self._evaluated(planned, problem, step),
        parameters=several * model_cost.count_parameters(problem.variables['params']),
        steps=problem.schedule(step.phase).total_steps if known else None,
        length=f'{train.length:g} {train.unit}', problems=problems,
        signal_source=step.signal_source)

  def _once(self, key: Hashable, trace: Callable[[], Cost]) -> Cost:
    """Returns a cost that several phases share, and traces it only for the first of them."""
    if key not in self._costs:
      self._costs[key] = trace()
    return self._costs[key]

  def _evaluated(self, planned: PlannedPhase, problem: Problem, step: Step) -> int:
    """Returns the FLOPs of all evaluations of a learner; see `Experiment.measure`."""
    schedule, role = problem.schedule(step.phase), step.phase.split('/')[0]
    times = -(-schedule.total_steps // schedule.evaluate_every)
    validation, test = self._images.get('validation', 0), self._images.get('test', 0)
    image = jax.ShapeDtypeStruct((1, *problem.image_shape), jnp.float32)
    own = self._once((id(planned.built), role, step.model), lambda: step_cost.cost(
        problem.task.predict, problem.variables, problem.task.frozen, image)).flops
    if step.phase.endswith('/prepare'):
      return own * times * validation
    if role == 'heads':  # Their weights and their analysis read each split once more.
      return own * ((times + 2) * validation + 3 * test)
    if role == 'teacher':
      return own * ((times + 1) * validation + 2 * test)
    return own * ((times + 1) * validation + 2 * test) + 2 * test * self._teacher(planned).flops

  def _teacher(self, planned: PlannedPhase) -> Cost:
    """Returns the cost of the teacher's forward pass of one image."""
    def trace() -> Cost:
      module, variables = planned.built.teacher, planned.built.teacher_variables
      image = jax.ShapeDtypeStruct((1, *planned.built.spec.image_shape), jnp.float32)
      return step_cost.cost(predict_as('teacher', module), variables, {}, image)

    return self._once((id(planned.built), 'teacher', planned.config.teacher.name), trace)

  def _cache(self, planned: PlannedPhase, step: Step) -> Iterator[PhaseEstimate]:
    """Yields the building of the cache that a step reads, unless an earlier phase builds it."""
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
    if taught_by == 'cohort':  # A head multiplies each number of its feature by each class.
      flops += 2 * built.spec.num_classes * sum(map(math.prod, built.taps.values()))
    yield PhaseEstimate(
        pair=planned.pair, phase=f'cache for {step.phase}',
        model=f'{slots:,} views of {width:,} numbers', runs=1, cost=Cost(),
        resident=run.table_bytes(step.cached),
        other_flops=flops * count * slots if self._images else 0)


def _measure(estimates: Sequence[PhaseEstimate], deadline: float) -> None:
  """Measures steps, the most informative ones first, as long as there is time for another one."""
  limit, slowest = memory.of_device(), 0.0  # `slowest` is in seconds per operation of a program.
  for number, estimate in enumerate(_by_importance(estimates)):
    if estimate.resident + estimate.cost.largest > limit:
      continue
    expected = slowest * estimate.cost.equations
    # Several processes compute each step together, and must make the same decision.
    if not devices.from_first_process(number == 0 or time.perf_counter() + expected < deadline):
      continue
    pair = f'{estimate.pair}, ' if estimate.pair else ''
    logger.info(f'dry run: measures {pair}{estimate.phase}')
    begun = time.perf_counter()
    try:
      with memory.reported_in_one_line(estimate.phase):
        estimate.measured = _measured(estimate)
    except errors.TrainingError as error:
      estimate.failed = str(error)
    finally:
      jax.clear_caches()
    slowest = max(slowest, (time.perf_counter() - begun) / estimate.cost.equations)


def _by_importance(estimates: Sequence[PhaseEstimate]) -> list[PhaseEstimate]:
  """Returns the steps to measure, the most informative ones first.

  These are the teacher, the heads and the most expensive student of each pair.
  """
  trained = [estimate for estimate in estimates if estimate.problems]
  first = []
  for _, of_pair in itertools.groupby(trained, key=lambda estimate: estimate.pair):
    by_kind: dict[str, list[PhaseEstimate]] = {}
    for estimate in of_pair:
      by_kind.setdefault(estimate.kind, []).append(estimate)
    first += [max(same_kind, key=lambda estimate: (
        estimate.signal_source == 'cohort', estimate.cost.flops))
              for same_kind in by_kind.values()]
  chosen = {id(estimate) for estimate in first}
  return first + [estimate for estimate in trained if id(estimate) not in chosen]


def _measured(estimate: PhaseEstimate) -> Measurement:
  """Compiles the step of a phase and times it."""
  assert estimate.problems, 'a cache has no step'
  problems = estimate.problems()
  problem, config = problems[0], problems[0].config
  schedule = problem.schedule(estimate.phase)
  updates = next(steps_per_call.sizes(
      0, schedule.total_steps, schedule.evaluate_every, schedule.per_call))
  students = Students([one.train_step for one in problems], config.sweep.together_by) if (
      len(problems) > 1) else None
  states: Any = [one.state(one.variables, config.seed) for one in problems]
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
  usage = compiled.memory_analysis()
  taken = (usage.argument_size_in_bytes + usage.temp_size_in_bytes + usage.output_size_in_bytes
           - usage.alias_size_in_bytes)
  return Measurement(seconds=statistics.median(times[1:]) / updates, compiling=compiling,
                     memory=taken + memory.of_images(problem, ('test',)))


@dataclasses.dataclass(frozen=True)
class _Figures:
  """The numbers of a row of the table.

  Attributes:
    step: seconds of an update; None if no step was measured.
    total: seconds of the phase; None if no step was measured, or if the number of steps is unknown.
    compiling: seconds of the compilation; None if no step was measured.
    memory: bytes on a device.
  """

  step: float | None
  total: float | None
  compiling: float | None
  memory: int


def _figures(estimate: PhaseEstimate, estimates: Sequence[PhaseEstimate]) -> _Figures:
  """Returns the measured numbers of a phase, or numbers scaled from the nearest measurement."""
  nearest = estimate if estimate.measured else _nearest(estimate, estimates)
  measured = nearest and nearest.measured
  if not (nearest and measured):
    return _Figures(None, None, None, estimate.resident + estimate.cost.products)
  speed = nearest.cost.flops / measured.seconds
  others = estimate.other_flops / speed / devices.num_devices()
  if estimate.problems is None:
    return _Figures(None, others or None, 0.0, estimate.resident)
  step = estimate.cost.flops / speed
  # Activations take memory in proportion to the results of convolutions and products.
  ratio = max(measured.memory - nearest.resident, 0) / max(nearest.cost.products, 1)
  return _Figures(
      step, None if estimate.steps is None else estimate.steps * step + others,
      measured.compiling * estimate.cost.equations / nearest.cost.equations,
      measured.memory if nearest is estimate else
      estimate.resident + round(ratio * estimate.cost.products))


def _nearest(
    estimate: PhaseEstimate, estimates: Sequence[PhaseEstimate]
) -> PhaseEstimate | None:
  """Returns the measured phase that is most similar to one that was not measured.

  Phases are compared by their kind, then by whether teachers run in the step, then by FLOPs.
  """
  def distance(other: PhaseEstimate) -> tuple[int, bool, float]:
    flops = estimate.cost.flops or estimate.other_flops
    return (_SCALED_BY[estimate.kind].index(other.kind),
            (estimate.signal_source is None) != (other.signal_source is None),
            abs(math.log(max(flops, 1) / max(other.cost.flops, 1))))

  return min((other for other in estimates if other.measured), key=distance, default=None)


def _introduction(planned: Sequence[PlannedPhase], images: dict[str, int]) -> Iterator[str]:
  spec, count = planned[0].built.spec, devices.num_devices()
  counted = (', '.join(f'{images[split]:,} to {verb} with' for split, verb in (
      ('train', 'train'), ('validation', 'validate'), ('test', 'test'))) if images
             else 'their number is not known, because the data set is not prepared')
  side = 'x'.join(map(str, spec.image_shape))
  yield f'data: {spec.name}, {side}, {spec.num_classes} classes; images: {counted}'
  yield (f'devices: {count} x {jax.devices()[0].device_kind}, each with '
         f'{memory.in_words(memory.of_device())} of memory')


def _table(entries: Sequence[PhaseEstimate]) -> Iterator[str]:
  """Yields the table, a line for each phase, and the total."""
  titles = ('phase', 'model', 'parameters', 'steps', 'a step', 'in all', 'memory', 'runs')
  rows: list[Sequence[str]] = [titles]
  total, scaled, open_ = 0.0, False, False
  for entry in entries:
    figures, mark = _figures(entry, entries), '' if entry.measured else '~'
    steps = entry.length if entry.steps is None else f'{entry.steps:,}'
    rows.append((
        entry.phase, entry.model, f'{entry.parameters:,}' if entry.parameters else '',
        steps if entry.problems else '', _marked(mark, figures.step) if entry.problems else '',
        _marked(mark, figures.total), mark + memory.in_words(figures.memory), f'x {entry.runs}'))
    total += entry.runs * (figures.total or 0)
    scaled, open_ = scaled or bool(mark), open_ or figures.total is None
  header, *lines = tabulate.tabulate(
      rows, tablefmt='plain', disable_numparse=True,
      colalign=['left', 'left', *['right'] * (len(titles) - 2)]).split('\n')
  yield from ('', header)
  heading = ''
  for entry, line in zip(entries, lines, strict=True):
    if entry.pair != heading:
      heading = entry.pair
      yield f'\n{heading}:'
    yield line
  yield ''
  if open_:
    yield 'in all: not known'
  else:
    yield f'in all: {_marked("~" * scaled, total)}'


def _marked(mark: str, seconds: float | None) -> str:
  """Returns a time as text, such as '1.5 hours'; '?' if it is not known."""
  if seconds is None:
    return '?'
  for unit, size in (('days', 86400), ('hours', 3600), ('minutes', 60)):
    if seconds >= 2 * size:
      return f'{mark}{seconds / size:.1f} {unit}'
  return f'{mark}{seconds:.1f} s' if seconds >= 1 else f'{mark}{1000 * seconds:.1f} ms'


def _explanation(
    planned: Sequence[PlannedPhase], estimates: Sequence[PhaseEstimate], images: dict[str, int]
) -> Iterator[str]:
  """Yields lines that explain the numbers of the table."""
  steps = [estimate for estimate in estimates if estimate.problems]
  measured = [estimate for estimate in steps if estimate.measured]
  if not measured:
    yield ('No step was measured: times are not known, and memory is a rough guess. '
           '--dry_run_seconds=120 measures for two minutes.')
  else:
    if len(measured) < len(estimates):
      yield (f'{len(measured)} of {len(steps)} steps were compiled and timed here. ~ marks numbers '
             'that are scaled by FLOPs from the most similar of these steps.')
    compiling = sum(_figures(estimate, estimates).compiling or 0 for estimate in steps)
    yield ('The column "in all" includes the evaluations, scaled by FLOPs. It does not include '
           f'compiling ({_marked("~", compiling)} for the')
    yield ('steps, unless an earlier run has compiled them), the start, preparing and reading the '
           'data, checkpoints, and the')
    yield 'evaluation of an existing teacher or existing heads.'
  if not images:
    yield (f'{planned[0].built.spec.name} is not prepared, and its number of images is not known. '
           'The length of a phase in steps is')
    yield 'therefore not known, and the memory does not include the images.'
  limit = memory.of_device()
  large = [estimate.phase for estimate in estimates
           if _figures(estimate, estimates).memory > limit]
  if large:
    yield (f'More memory than a device has: {", ".join(dict.fromkeys(large))}. '
           'config.compute.accumulate and config.compute.remat reduce it.')
  yield from (estimate.failed for estimate in estimates if estimate.failed)
  yield 'Nothing was trained or written.'
