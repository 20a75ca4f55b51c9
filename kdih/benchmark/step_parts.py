"""The parts of a step as separate programs, on one device and its slice of a batch."""
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kdih.benchmark import programs
from kdih.benchmark.measuring import Item, Times
from kdih.cohort.members import members_of
from kdih.distillation.signal import TeacherSignal
from kdih.models import taps as taps_lib
from kdih.phases.student import teacher_of
from kdih.runtime import devices


def items(pair: programs.ModelPair) -> list[Item]:
  """Returns the items of the parts of a DIH step.

  They are `input`, `teacher`, `heads` and `student` (forward pass, backward pass and update).
  """
  index = jnp.arange(pair.batch_size // devices.num_devices())
  built, loader = pair.built, pair.data.splits.loader('train')
  teacher = teacher_of(pair.config, built, pair.frozen)
  frozen, resident = jax.device_put(
      (teacher.frozen, loader.resident), jax.local_devices()[0])

  @jax.jit
  def read(resident, index, step):
    batch = loader.gather(resident, {'index': index})
    key = jax.random.fold_in(jax.random.key(programs.SEED), step)
    return pair.data.preprocess(batch['image'], index, key)

  @jax.jit
  def teach(frozen, images):
    return taps_lib.observe(teacher.module, frozen['teacher'], images, tuple(built.taps))[0]

  @jax.jit
  def mount(frozen, output):
    members = members_of(built.heads, frozen['heads'], output, tuple(built.taps))
    return TeacherSignal(members=jnp.stack(list(members.values()), axis=1))

  images = read(resident, index, 0)
  output = teach(frozen, images)
  student = programs.Training(
      programs.taught_problem(pair, mount(frozen, output), images))
  return [_item('input', read, resident, index, 0), _item('teacher', teach, frozen, images),
          _item('heads', mount, frozen, output), student.item('student')]


def _item(name: str, function: Callable, *arguments: Any) -> Item:
  def seconds(calls: int) -> float:
    jax.block_until_ready(function(*arguments))
    begun = time.perf_counter()
    for _ in range(calls):
      result = function(*arguments)
    jax.block_until_ready(result)
    return time.perf_counter() - begun

  return Item(name, seconds)


def shares(times: dict[str, Times]) -> dict[str, float]:
  """Returns the fractions of a step of the training loop that its parts take.

  `host` is the time of the loop beyond the bare step. `together` is the time of the bare step
  beyond the sum of its parts; it is negative if the parts are faster as one program.
  """
  whole, bare = times['loop'].median, times['bare'].median
  parts = {name: times[name].median for name in ('input', 'teacher', 'heads', 'student')}
  seconds = {**parts, 'host': whole - bare, 'together': bare - sum(parts.values())}
  return {name: value / whole for name, value in seconds.items()}
