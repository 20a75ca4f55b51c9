"""What a step costs, read off its traced program: worked out by hand for a tiny net."""
import jax
import jax.numpy as jnp
import pytest

from kdih.data.made import made_splits
from kdih.data.spec import DataSpec
from kdih.phases import networks, step_cost
from kdih.phases.blank import BlankRun
from tests.helpers.runs import read_config

SPEC = DataSpec('digits', (8, 8, 1), 10)
SHARE = 8  # Images of a batch of 32 on each of four devices.
# Multiply-adds: 3x3 convolutions of 1 to 4 channels on 4x4 places, of 4 to 8 on 2x2, and a layer.
CONV1, CONV2, DENSE = 2 * 9 * 4 * 16, 2 * 9 * 4 * 8 * 4, 2 * 8 * 10
FORWARD = CONV1 + CONV2 + DENSE
HEADS = 2 * 10 * (4 * 4 * 4 + 2 * 2 * 8)


def blank(*overrides, train=200) -> BlankRun:
  config = read_config('unused', 'unused', *(f'--config.{item}' for item in overrides))
  return BlankRun(config, networks.build(config, SPEC), made_splits(SPEC, train, 50), shapes=True)


def costs(phase, *overrides, gradient=True):
  """(cost of the teacher signal, cost of the loss) of the only step of a phase."""
  step, = blank(*overrides).steps(phase)
  problem = step.problem()
  teachers, signal = step_cost.of_signal(problem)
  return teachers, step_cost.of_loss(problem, signal, gradient=gradient)


def test_the_forward_pass_of_the_teacher_and_its_gradients():
  nobody, forward = costs('teacher', gradient=False)
  assert (nobody.flops, nobody.largest) == (0, 0)
  assert forward.flops == SHARE * FORWARD
  assert forward.largest == SHARE * 4 * 4 * 4 * 4  # What the first convolution makes, in float32.
  assert forward.products == SHARE * 4 * (4 * 4 * 4 + 2 * 2 * 8 + 10)
  _, both = costs('teacher')
  # Each layer once more for its weights, and once for its inputs, which images do not need.
  assert both.flops == SHARE * (3 * FORWARD - CONV1)
  assert both.equations > forward.equations


def test_heads_are_taught_nothing_of_the_frozen_backbone():
  teachers, heads = costs('heads')
  assert teachers.flops == SHARE * FORWARD
  assert heads.flops == SHARE * 2 * HEADS  # Forward, and for their weights.


@pytest.mark.parametrize('method, teachers', [('ce', 0), ('kd', FORWARD), ('dih', FORWARD + HEADS)])
def test_a_student_is_taught_by_one_forward_pass(method, teachers):
  of_method, _ = costs(f'student/{method}', f'student.methods={method}')
  assert of_method.flops == SHARE * teachers


def test_parts_of_a_batch_cost_the_same_and_make_smaller_arrays():
  _, whole = costs('teacher', gradient=False)
  _, cut = costs('teacher', 'compute.accumulate=4', gradient=False)
  assert cut.flops == whole.flops and 4 * cut.largest == whole.largest


def test_a_loop_counts_its_turns():
  def looped(x):
    return jax.lax.scan(lambda x, _: (x @ x, None), x, None, length=5)[0]

  square = jax.ShapeDtypeStruct((3, 3), jnp.float32)
  assert step_cost.cost(looped, square).flops == 5 * 2 * 27


def test_a_cache_takes_the_place_of_the_teacher():
  teachers, _ = costs('student/kd', 'student.methods=kd', 'compute.cache=all_views')
  assert teachers.flops == 0


def test_the_steps_of_a_chain_and_of_a_preparation():
  run = blank('student.methods=takd,fitnets')
  assert [step.phase for step in run.steps('student/takd')] == [
      'student/takd/assistant1', 'student/takd/assistant2', 'student/takd']
  prepare, taught = run.steps('student/fitnets')
  assert (prepare.phase, prepare.train) == ('student/fitnets/prepare', 'student.prepare')
  assert prepare.signal_source == taught.signal_source == 'teacher'


@pytest.mark.parametrize('role', ['teacher', 'heads'])
def test_what_exists_has_no_steps(role):
  assert list(blank(f'{role}.variables=/somewhere').steps(role)) == []
