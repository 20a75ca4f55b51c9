"""Data sets: TFDS sources, the two loaders, the seeded order and the augmentation.

What reads and prepares data sets imports TFDS, and is imported by its module: `kdih.data.builders`,
`kdih.data.source`.
"""
from kdih.data.loaders import Examples, Loader, MemoryLoader, Splits, StreamingLoader, make_loader
from kdih.data.preprocess import Preprocess, make_preprocess, of_config
from kdih.data.sampling import eval_batches, split_validation, train_batches
from kdih.data.spec import DataSpec

__all__ = [
    'DataSpec', 'Examples', 'Loader', 'MemoryLoader', 'Preprocess', 'Splits', 'StreamingLoader',
    'eval_batches', 'make_loader', 'make_preprocess', 'of_config', 'split_validation',
    'train_batches',
]
