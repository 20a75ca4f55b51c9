"""PyTorch beside kdih: the same input, models, loss and update."""
import jax.numpy as jnp
import numpy as np
import pytest

from kdih import errors
from kdih.benchmark import programs
from kdih.distillation import losses
from kdih.models import registry, taps
from tests.helpers.model_checks import close, random_images, random_variables
from tests.helpers.slow import slow

torch = pytest.importorskip('torch')

from kdih.benchmark.peer import equality, forms, networks  # noqa: E402

SMALL = {
    'resnet8': {'stage_sizes': (2, 1), 'stage_widths': (4, 6), 'stem_width': 4},
    'resnet18': {'stage_sizes': (1, 2), 'stage_widths': (4, 6), 'stem_width': 3},
    'wrn_16_2': {},
}


def nearly(found, expected):
  """Of the size of the largest number, as sums of many layers may differ."""
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('name', [slow('resnet8'), 'resnet18', slow('wrn_16_2')])
def test_models_have_the_same_logits_and_taps(name, train):
  model, images = registry.create(name, 5, **SMALL[name]), random_images(4, 8)
  variables = random_variables(model, images)
  chosen = taps.choose_taps(model, images.shape[1:], ())
  expected, _ = taps.observe(model, variables, images, tuple(chosen), train=train)
  peer = networks.load(networks.like(model, name), variables).train(train)
  logits, features = peer(torch.from_numpy(np.array(images)).permute(0, 3, 1, 2))
  nearly(logits.detach().numpy(), expected.logits)
  assert list(features) == list(chosen)
  for tap, feature in features.items():
    nearly(feature.detach().permute(0, 2, 3, 1).numpy(), expected.features[tap])


def test_a_model_that_is_not_there_is_named():
  with pytest.raises(errors.ConfigError, match='vgg8 is not available in PyTorch; choose'):
    networks.like(registry.create('vgg8', 5), 'vgg8')


@pytest.mark.parametrize('channels_last', [False, True])
def test_a_head_reads_the_feature_in_its_order(channels_last):
  rng = np.random.default_rng(0)
  feature, kernel, bias = (rng.normal(size=shape).astype(np.float32)
                           for shape in ((2, 3, 4, 5), (60, 7), (7,)))
  head = networks.make_head(kernel, bias, (3, 4, 5), channels_last)
  found = head(torch.from_numpy(feature).permute(0, 3, 1, 2))
  close(found.detach().numpy(), feature.reshape(2, -1) @ kernel + bias[None])


def test_a_crop_is_cut_from_the_padded_image_and_mirrored():
  image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
  found = forms.crop(
      torch.from_numpy(image[None]), *(torch.tensor(x) for x in ([0, 0], [1, 8], [0, 5],
                                                                 [False, True])))
  cut = np.stack([image[1:33, :32], image[8:, 5:37][:, ::-1]])
  mean, std = (np.array(programs.AUGMENTATION[name]) for name in ('mean', 'std'))
  close(found.permute(0, 2, 3, 1).numpy(), (cut / 255 - mean) / std)


@pytest.mark.slow
def test_the_loss_is_that_of_the_cohort():
  rng = np.random.default_rng(0)
  student, *members = (rng.normal(size=(6, 5)).astype(np.float32) for _ in range(4))
  labels = rng.integers(0, 5, 6)
  expected = sum((sum(losses.kd_terms(
      jnp.asarray(student), jnp.asarray(member), jnp.asarray(labels), programs.ALPHA,
      programs.TEMPERATURE).values()) for member in members), jnp.zeros(6)).mean()
  found = forms.dih_loss(
      torch.from_numpy(student), list(map(torch.from_numpy, members)), torch.from_numpy(labels))
  assert found.item() == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.slow
def test_what_is_expected_of_bfloat16_is_of_the_same_teacher():
  names = ('resnet8', 'resnet8')
  pair = programs.make_pair(*names, 8, 'bfloat16', programs.made_images(64))
  norm = pair.frozen['teacher']['batch_stats']['stem_norm']
  norm['mean'] = norm['mean'] + 0.1  # As of another device, or another precision.
  form = forms.Paper(pair, names, torch.device('cpu'))
  deviations = equality._compare('paper', form, equality._expected(pair, names))
  assert max(deviations.values()) < 1e-3


@pytest.mark.slow
def test_both_forms_are_checked_and_one_that_differs_is_refused():
  pair = programs.make_pair('resnet8', 'resnet8', 8, 'float32', programs.made_images(64))
  report = equality.Peer(pair, ('resnet8', 'resnet8'), 'float32').report()
  assert list(report['forms']) == ['torch_paper', 'torch_tuned']
  for deviations in report['deviations'].values():
    assert set(deviations) == {'input', 'members', 'student', 'loss', 'update'}
    assert max(deviations.values()) < 1e-3
  pair.config.student.train['weight_decay'] = 0.05
  expected = equality._expected(pair, ('resnet8', 'resnet8'))
  form = forms.Paper(pair, ('resnet8', 'resnet8'), torch.device('cpu'))
  with pytest.raises(errors.TrainingError, match='update of paper deviates .*nothing was timed'):
    equality._compare('paper', form, expected)
