"""What a sweep would cost: shapes, parameters, FLOPs, memory and time, with nothing trained."""
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from kdih import (
  cache,
  cache_tables,
  cohort,
  config_compute,
  cost,
  costing,
  data,
  frozen as frozen_lib,
  grid,
  modules,
  parallel,
  phases,
  state,
  taps,
  tasks,
)
from kdih.costing import Phase, Setting
from kdih.heard import NoTable
from kdih.modules import Modules
from kdih.tasks import Task

_Runs = Sequence[tuple[grid.Run, ...]]
_Hears = tuple[str, str, str]  # A teacher, what it teaches with, and the name of the hearing.


def describe(
    pairs: Sequence[grid.Pair], built: Sequence[Modules], runs: _Runs, sizes: dict[str, int]
) -> str:
  """Tables of what each pair consists of, and what each of its phases would cost.

  FLOPs are those of the traced programs, a multiply-add counted as two. Times follow from them
  and from the speed at which this machine trains the first student from labels, measured over a
  few steps on blank images: the order of magnitude, no more. Memory is that of variables,
  gradients, optimizer, resident data, the activations that the backward pass needs, and the table
  of what teachers say that the phase makes or learns from.

  Args:
    pairs: to be run.
    built: their modules.
    runs: all of them, by what is trained together.
    sizes: of the data; see `kdih.split_sizes`.
  """
  lines = [f'data: {built[0].spec.name}, images {built[0].spec.image_shape}, '
           f'{built[0].spec.num_classes} classes']
  if not sizes:
    shapes = (line for pair, one in zip(pairs, built, strict=True) for line in _title(pair, one))
    return '\n'.join([*lines, *shapes, '', 'how long it takes is not known before '
                      f'{built[0].spec.name} is prepared; nothing was trained or written'])
  speed = costing.speed(Setting(pairs[0].config, built[0], sizes))
  lines.append(f'speed: {speed / 1e9:,.1f} GFLOP/s on {parallel.num_devices()} x '
               f'{jax.devices()[0].device_kind}')
  total = 0.0
  for pair, one, planned in zip(pairs, built, plan(pairs, built, runs, sizes), strict=True):
    lines += _title(pair, one)
    for phase in planned:
      lines += _line(phase, phase.flops / speed)
      total += phase.flops / speed * phase.runs
  return '\n'.join([*lines, '', f'in all: {_duration(total)}, and what compiling takes; nothing was'
                    ' trained or written'])


def _title(pair: grid.Pair, built: Modules) -> Iterator[str]:
  yield ''
  yield f'{pair.teacher} -> {pair.student}'
  for role in ('teacher', 'student'):
    model, shape = getattr(built, role), built.spec.image_shape
    variables = taps.abstract_variables(model, shape)
    flops = cost.forward_flops(model, variables, shape) or 0
    yield (f'  {role:8}{getattr(pair, role)}: {phases.count(variables["params"]):,} parameters, '
           f'{flops:.2e} FLOPs an image')
  for tap, feature in built.taps.items():
    yield f'  head    {tap} on {feature}'


def _line(phase: Phase, seconds: float) -> Iterator[str]:
  yield (f'  {phase.name:28}{phase.parameters:>14,} parameters {phase.flops:9.2e} FLOPs '
         f'{phase.memory / 2**20:9,.0f} MiB {_duration(seconds):>9} x {phase.runs}')
  yield from (f'    {note}' for note in phase.notes)


def _duration(seconds: float) -> str:
  for unit, size in (('days', 86400), ('hours', 3600), ('minutes', 60)):
    if seconds >= size:
      return f'{seconds / size:.1f} {unit}'
  return f'{seconds:.0f} seconds'


def plan(
    pairs: Sequence[grid.Pair], built: Sequence[Modules], runs: _Runs, sizes: dict[str, int]
) -> list[list[Phase]]:
  """The phases of each pair: what is shared, such as a teacher, with the first that asks for it.

  The arguments are those of `describe`.
  """
  settings = {(pair.teacher, pair.student): Setting(pair.config, one, sizes)
              for pair, one in zip(pairs, built, strict=True)}
  taught, heard = set[tuple[str, str]](), set[_Hears]()
  planned = []
  for (teacher, student), setting in settings.items():
    found = list(_teaching(setting, teacher, taught))
    if names := _unheard(setting, teacher, heard):
      found.append(_pass(setting, names))
    for name in setting.modules.methods:
      groups = [group for group in runs if group[0].method == name
                and (group[0].pair.teacher, group[0].pair.student) == (teacher, student)]
      if groups:  # Else it is trained together with another.
        found += _student_phases(setting, name, groups)
    planned.append(found)
  return planned


def _unheard(setting: Setting, teacher: str, heard: set[_Hears]) -> tuple[str, ...]:
  """Methods whose tables are to be made, one for each that is not among those `heard`; noted there.
  """
  wanted = {_hears(setting, name, teacher): name for name in reversed(setting.modules.methods)
            if cache.serves(setting.config, setting.modules, name)}
  names = [name for hears, name in wanted.items() if hears not in heard]
  heard.update(wanted)
  return tuple(reversed(names))


def _hears(setting: Setting, name: str, teacher: str) -> _Hears:
  built = setting.modules
  return teacher, built.methods[name].taught_by, cache.hearing(built, name).name


def _teaching(setting: Setting, name: str, taught: set[tuple[str, str]]) -> Iterator[Phase]:
  """Teacher and heads, unless they exist or are among those `taught`, where they are noted."""
  built, config = setting.modules, setting.config
  taught_by = {method.taught_by for method in built.methods.values()}
  teacher, heads = (name, 'teacher'), (name, 'heads')
  if not (teacher in taught or config.teacher.variables or taught_by == {'labels'}):
    taught.add(teacher)
    variables = taps.abstract_variables(built.teacher, built.spec.image_shape)
    yield costing.training(setting, 'teacher', tasks.teacher_task(built.teacher), variables,
                           config.teacher.train, 1)
  if not (heads in taught or config.heads.variables) and 'cohort' in taught_by:
    taught.add(heads)
    yield from _heads_phases(setting)


def _heads_phases(setting: Setting) -> Iterator[Phase]:
  built, config, names = setting.modules, setting.config, tuple(setting.modules.taps)
  prepared, cached = _prepared(setting, names), None
  if config.compute.cache_taps:
    module, variables = prepared
    cached = _table(setting, cache.taps_width(built)), built.taps
    yield _making(setting, 'cache taps', cache.tap_rows(built, module), {'teacher': variables},
                  {cache.taps_kind(built): cached[0].width})
  teacher = taps.abstract_variables(built.teacher, built.spec.image_shape)
  task = tasks.heads_task(built.teacher, built.heads, teacher, names, prepared, cached)
  yield costing.training(setting, 'heads', task, modules.abstract_heads(built),
                         config.heads.train, 1)


def _prepared(setting: Setting, names: Sequence[str]) -> tuple[nn.Module, Any]:
  """The teacher as it says quickly what is read at the taps `names`; its numbers are blank."""
  compute, shape = setting.config.compute, setting.modules.spec.image_shape
  teacher = setting.modules.teacher
  blank = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype),
                       taps.abstract_variables(teacher, shape))
  return frozen_lib.prepare(teacher, blank, names, shape,
                            fold_batch_norm=compute.fold_batch_norm, dtype=compute.teacher_dtype)


def _pass(setting: Setting, names: tuple[str, ...]) -> Phase:
  """The tables that these methods hear from, made in one."""
  built = setting.modules
  cohort_first = max(names, key=lambda name: built.methods[name].taught_by == 'cohort')
  module, frozen = _teacher(setting, cohort_first)
  return _making(setting, f'cache {", ".join(names)}', cache.rows(built, names, module), frozen,
                 {cache.hearing(built, name).name: built.heard_widths[name]
                  for name in names})


def _making(
    setting: Setting, name: str, rows: Any, frozen: Any, widths: dict[str, int]
) -> Phase:
  """Tables of these kinds and widths."""
  views, place = (setting.sizes['train'], _num_slots(setting.config)), (
      setting.config.compute.cache_place)
  notes = [cache_tables.described((*views, width), place, kind) for kind, width in widths.items()]
  table = _table(setting, sum(widths.values()))
  return costing.making(setting, name, rows, frozen, math.prod(views), table, notes)


def _table(setting: Setting, width: int) -> NoTable:
  """A table, with the shapes of what lies on one device."""
  table, images = NoTable(width), setting.sizes['train']
  if setting.config.compute.cache_place == 'device':
    share = -(-images // parallel.num_devices()), _num_slots(setting.config), width
    table.resident = {'heard': jax.ShapeDtypeStruct(share, cache_tables.DTYPE),
                      'heard_images': jax.ShapeDtypeStruct((images,), jnp.int32)}
  return table


def _num_slots(config: ml_collections.ConfigDict) -> int:
  return data.of_config(config, config_compute.fixed_views(config.compute.cache)).num_slots


def _student_phases(setting: Setting, name: str, groups: _Runs) -> Iterator[Phase]:
  """Assistants, what is prepared, and the student; as `kdih.students` trains them."""
  built, config = setting.modules, setting.config
  method, train = built.methods[name], config.student.train
  # Chains are not trained together.
  together, runs = ((1, sum(map(len, groups))) if method.assistants else
                    (len(groups[0]), len(groups)))
  for model in method.assistants:
    module = built.assistants[model]
    assistant = dataclasses.replace(built, student=module, student_taps={})
    yield costing.training(setting, f'  {name}: {model}',
                           *_student(dataclasses.replace(setting, modules=assistant), name), train,
                           runs)
    built = dataclasses.replace(built, teacher=module, teacher_taps={})
    setting = dataclasses.replace(setting, modules=built)
  several = f', {together} together' if together > 1 else ''
  if method.prepares:
    yield costing.training(setting, f'  {name}: prepare{several}',
                           *_student(setting, name, preparing=True), config.student.prepare, runs,
                           together)
  yield costing.training(setting, f'student {name}{several}', *_student(setting, name), train, runs,
                         together)


def _student(setting: Setting, name: str, *, preparing: bool = False) -> tuple[Task, Any]:
  built, shape = setting.modules, setting.modules.spec.image_shape
  method, table = built.methods[name], None
  frozen: dict[str, Any]
  if cache.serves(setting.config, built, name) and not preparing:
    table = _table(setting, built.heard_widths[name])
    module, frozen = built.teacher, {'weights': _weights(built, name)}
  else:
    module, frozen = _teacher(setting, name)
  num_examples = max(setting.sizes['train'] + setting.sizes['validation'], 1)
  if method.needs_train_labels:
    frozen['train_labels'] = jax.ShapeDtypeStruct((num_examples,), jnp.int32)
  teach = tasks.make_teach('labels' if table else method.taught_by, module,
                           tuple(built.teacher_taps), built.heads, tuple(built.taps))
  task = tasks.student_task(built.student, tuple(built.student_taps), method, teach, frozen,
                            preparing=preparing, table=table)
  return task, state.join(student=taps.abstract_variables(built.student, shape),
                          method=modules.abstract_method(built, name, num_examples))


def _teacher(setting: Setting, name: str) -> tuple[nn.Module, dict[str, Any]]:
  """Who teaches by the method `name`: a module, and what is frozen."""
  built = setting.modules
  taught_by = built.methods[name].taught_by
  if taught_by == 'labels':
    return built.teacher, {}
  if taught_by == 'teacher':
    module, variables = _prepared(setting, tuple(built.teacher_taps))
    return module, {'teacher': variables}
  module, variables = _prepared(setting, (*built.teacher_taps, *built.taps))
  return module, {'teacher': variables, 'heads': modules.abstract_heads(built),
                  'weights': _weights(built, name)}


def _weights(built: Modules, name: str) -> dict[str, Any]:
  """Shapes of what the members of the cohort are weighted by, where it teaches."""
  if built.methods[name].taught_by != 'cohort':
    return {}
  return {rule: jax.ShapeDtypeStruct((len(built.taps) + 1,), jnp.float32)
          for rule in cohort.RULES}
