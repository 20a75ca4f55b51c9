"""Data sets: TFDS sources, the two loaders, the seeded order and the augmentation."""
from kdih.data.builders import DataSpec, describe, open_builder, prepare
from kdih.data.loaders import Loader, MemoryLoader, Splits, StreamingLoader, make_loader
from kdih.data.preprocess import Preprocess, make_preprocess, of_config
from kdih.data.sampling import eval_batches, split_validation, train_batches
from kdih.data.source import Source, open_split

__all__ = [
    'DataSpec', 'Loader', 'MemoryLoader', 'Preprocess', 'Source', 'Splits', 'StreamingLoader',
    'describe', 'eval_batches', 'make_loader', 'make_preprocess', 'of_config', 'open_builder',
    'open_split', 'prepare', 'split_validation', 'train_batches',
]
