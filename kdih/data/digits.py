"""scikit-learn's handwritten digits as a TFDS data set that needs no network."""
import numpy as np
import tensorflow_datasets as tfds


class Digits(tfds.core.GeneratorBasedBuilder):
  """1,797 digits of 8x8 grey levels, from UCI's test set; every fifth is a test image."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
        description='Optical recognition of handwritten digits, 8x8 pixels, grey levels 0-255.',
        homepage='https://doi.org/10.24432/C50P49',
        features=tfds.features.FeaturesDict({
            'image': tfds.features.Image(shape=(8, 8, 1)),
            'label': tfds.features.ClassLabel(num_classes=10),
        }),
        supervised_keys=('image', 'label'),
        disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    return {'train': self._generate_examples(test=False),
            'test': self._generate_examples(test=True)}

  def _generate_examples(self, test: bool):
    from sklearn import datasets  # Takes a second; needed only to prepare the data set.

    digits = datasets.load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    for index, (image, label) in enumerate(zip(images, digits.target, strict=True)):
      if (index % 5 == 4) == test:
        yield index, {'image': image, 'label': int(label)}
