"""TFDS sources in both file formats: what they hold, resized, and settings that do not fit."""
import numpy as np
import PIL.Image
import pytest

from kdih.data import datasets
from tests.helpers.made_data import FORMATS, make_config, message, open_source, pixels


def test_digits_are_scikit_learns_every_fifth_one_for_the_test(digits_dir):
  from sklearn import datasets
  expected, is_test = datasets.load_digits(), np.arange(1797) % 5 == 4
  for split, chosen in (('train', ~is_test), ('test', is_test)):
    source = open_source(make_config(data_dir=digits_dir, train_split=split))
    images, labels = source.read(np.arange(len(source)))
    np.testing.assert_array_equal(labels, expected.target[chosen])
    np.testing.assert_allclose(images[..., 0] * (16 / 255), expected.images[chosen], atol=0.04)


@pytest.mark.parametrize('file_format', FORMATS)
@pytest.mark.parametrize('split, expected', [
    ('train', range(40)), ('test', range(40, 47)), ('train[10:20]', range(10, 20)),
    ('train[-3:]', range(37, 40)), ('train[25%:75%]', range(10, 30)),
    ('train[38:]+test[:2]', range(38, 42))])
def test_a_split_holds_what_was_written_in_any_order(small, file_format, split, expected):
  config = small(file_format, train_split=split)
  assert datasets.open_builder(config).info.splits['train'].num_shards == 3
  source = open_source(config)
  order = np.random.default_rng(0).permutation([*range(len(expected)), 0])
  images, labels = source.read(order)
  assert (len(source), images.dtype, labels.dtype) == (len(expected), np.uint8, np.int32)
  np.testing.assert_array_equal(images, [pixels(expected[i], 6, 8, 3) for i in order])
  np.testing.assert_array_equal(labels, [expected[i] % 3 for i in order])


@pytest.mark.parametrize('key, size, originals', [
    ('photo', 5, [pixels(0, 8, 12, 3)[:, 2:10], pixels(1, 12, 8, 3)[2:10], pixels(2, 10, 10, 3)]),
    ('grey', 3, [pixels(i, 6, 6, 1) for i in range(3)]),
    ('grey', 6, [pixels(i, 6, 6, 1) for i in range(3)])])
def test_images_are_resized_from_their_middle_square(small, key, size, originals):
  images, _ = open_source(small(image_key=key, image_size=size)).read(np.arange(3))
  assert images.shape == (3, size, size, originals[0].shape[-1])
  for image, original in zip(images, originals, strict=True):
    picture = PIL.Image.fromarray(original.squeeze())
    expected = np.asarray(picture.resize((size, size), PIL.Image.Resampling.BILINEAR), int)
    inside = slice(1, -1)  # At its edge, pixels outside the square count too.
    np.testing.assert_allclose(image.squeeze()[inside, inside], expected[inside, inside], atol=1)


@pytest.mark.parametrize('fields, expected', [
    ({'name': 'cifar101'}, "name: unknown 'cifar101'; did you mean 'cifar10"),
    ({'name': 'digits/9.9.9'}, 'name: '), ({'name': 'digits/none'}, 'name: '),
    ({'image_key': 'imgae'}, "image_key: unknown 'imgae'; did you mean 'image'? choose from: "),
    ({'label_key': 'labels'}, "label_key: unknown 'labels'; did you mean 'label'? choose from: "),
    ({'image_key': 'label'}, "image_key: 'label' is not a"),
    ({'label_key': 'grey'}, "label_key: 'grey' is not a"),
    ({'image_key': 'photo'}, 'image_size: the images of small differ in size; set the side in '),
    ({'train_split': 'trian'}, "train_split: unknown 'trian'; did you mean 'train'? choose from: "),
    ({'train_split': 'train[5:5]'}, "train_split: 'train[5:5]' holds no images"),
    ({'train_split': 'train[5:'}, "train_split: 'train[5:' cannot be read ("),
    ({'train_split': 'train[:5000]'}, "train_split: 'train[:5000]' cannot be read (Requested "),
    ({'folder': '/my/images'}, "folder: is '/my/images', which config.data.name 'small' does not "),
    ({'name': 'image_folders'}, "name: unknown 'image_folders'; did you mean 'image_folder'? ")])
def test_a_setting_that_does_not_fit_the_data_set_is_named(small, fields, expected):
  assert message(open_source, small(**fields)).startswith(f'config.data.{expected}')
