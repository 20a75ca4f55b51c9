"""The costs of a model against numbers worked out by hand."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kdih.models import cost, registry
from kdih.phases import networks


class Linear(nn.Module):
  """Images of any shape to three logits."""

  @nn.compact
  def __call__(self, images: jax.Array, train: bool) -> jax.Array:
    return nn.Dense(3)(images.reshape(images.shape[0], -1))


class Convolution(nn.Module):
  """3x3, five filters, padded by `padding`."""

  padding: str

  @nn.compact
  def __call__(self, images: jax.Array, train: bool) -> jax.Array:
    return nn.Conv(5, (3, 3), padding=self.padding)(images)


def measure(model: nn.Module, batch_size: int = 1) -> dict:
  variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 2)), train=False)
  return cost.measure(model, variables, (8, 8, 2), batch_size=batch_size, repeats=3)


def test_dense_has_two_flops_per_weight_and_one_per_bias():
  costs = measure(Linear())
  assert costs['parameters'] == 8 * 8 * 2 * 3 + 3
  assert costs['flops'] == 2 * (8 * 8 * 2) * 3 + 3


def test_convolution_has_two_flops_per_weight_and_position():
  costs = measure(Convolution('VALID'))
  assert costs['parameters'] == 3 * 3 * 2 * 5 + 5
  assert costs['flops'] == 2 * (3 * 3 * 2) * 5 * (6 * 6) + 5 * (6 * 6)


def test_padding_costs_no_flops():
  # In one dimension the filter's 3 columns meet 8 - 2 inner pixels, two of them the 2 outer ones.
  taken = 3 * 6 + 2 * 2
  assert measure(Convolution('SAME'))['flops'] == 2 * taken * taken * 2 * 5 + 5 * 8 * 8


def test_flops_are_those_of_one_image_whatever_the_batch():
  assert measure(Linear(), batch_size=64)['flops'] == measure(Linear())['flops']


def test_times_are_positive_and_everything_fits_json():
  costs = measure(Linear(), batch_size=4)
  assert set(costs) == {'parameters', 'flops', 'latency_ms', 'images_per_second'}
  assert all(type(value) in (int, float) and value > 0 for value in costs.values())


def test_batch_statistics_are_used_but_are_no_parameters():
  model = registry.create('resnet8', 3, stage_sizes=(1,), stage_widths=(2,), stem_width=2)
  variables = networks.initialise(model, jax.random.key(0), (4, 4, 1))
  costs = cost.measure(model, variables, (4, 4, 1), batch_size=1, repeats=1)
  # Stem 3x3x1x2, two convolutions 3x3x2x2, a scale and a bias of 2 after each, Dense 2x3 + 3.
  assert costs['parameters'] == 18 + 2 * 36 + 3 * 4 + 9
  assert costs['parameters'] < sum(x.size for x in jax.tree.leaves(variables))


def test_bytes_on_disk_counts_every_file_below(tmp_path):
  (tmp_path / 'deep' / 'deeper').mkdir(parents=True)
  (tmp_path / 'a').write_bytes(b'x' * 10)
  (tmp_path / '.hidden').write_bytes(b'x' * 5)
  np.save(tmp_path / 'deep' / 'deeper' / 'b.npy', np.zeros(100, np.float32))
  assert cost.bytes_on_disk(tmp_path) == 10 + 5 + (128 + 400)
  assert cost.bytes_on_disk(tmp_path / 'deep') == 528


def test_bytes_on_disk_of_nothing(tmp_path):
  assert cost.bytes_on_disk(tmp_path) == 0
