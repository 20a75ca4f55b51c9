"""The two loaders give the same examples."""
import subprocess
import sys

import numpy as np
import pytest

from kdih import errors
from kdih.data import loaders, sampling
from tests.helpers.made_data import FORMATS, examples, make_config, message, open_source
from tests.helpers.slow import slow

WITHOUT_TENSORFLOW = """
import sys
from kdih.config import fields
from kdih.data import datasets, loaders
from kdih.data.source import open_split
config = fields.base().data
config.update(name='small', data_dir=sys.argv[1])
loader = loaders.MemoryLoader(open_split(datasets.open_builder(config), 'train_split', config))
assert loader.resident['label'].shape == (40,) and 'tensorflow' not in sys.modules
"""


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('origin', ['digits', *FORMATS])
def test_both_loaders_give_the_same_examples(small, digits_dir, origin, training):
  source = open_source(make_config(data_dir=digits_dir) if origin == 'digits' else small(origin))
  subset = np.arange(0, 40, 2, dtype=np.int32)
  batches = list(sampling.train_batches(subset, 8, 30, 2, 25) if training
                 else sampling.eval_batches(subset, 16))
  memory, streaming = (examples(loaders.make_loader(name, source), batches)
                       for name in ('memory', 'streaming'))
  for batch, one, other in zip(batches, memory, streaming, strict=True):
    assert one.keys() == other.keys() == {*batch, 'image', 'label'}
    np.testing.assert_array_equal(one['image'], source.read(batch['index'])[0])
    for key in one:
      np.testing.assert_array_equal(one[key], other[key])
      assert one[key].dtype == other[key].dtype


@pytest.mark.parametrize('name', ['memory', 'streaming'])
def test_no_batches_give_no_feeds(small, name):
  assert list(loaders.make_loader(name, open_source(small())).feeds(iter(()))) == []


@pytest.mark.parametrize('name', ['memory', 'streaming'])
def test_a_split_without_labels_is_refused(small, name):
  source = open_source(small(train_split='unlabelled'))
  batches = sampling.eval_batches(np.arange(3), 3)
  found = message(
      lambda: examples(loaders.make_loader(name, source), batches), kind=errors.DataError)
  assert found.startswith('config.data.label_key: small has a label outside 0 to 2; choose a split')


@pytest.mark.parametrize('file_format', [FORMATS[0], slow(FORMATS[1])])
def test_the_memory_loader_does_without_tensorflow(small, file_format):
  command = [sys.executable, '-c', WITHOUT_TENSORFLOW, small(file_format).data_dir]
  result = subprocess.run(command, capture_output=True, text=True)
  assert result.returncode == 0, result.stderr
