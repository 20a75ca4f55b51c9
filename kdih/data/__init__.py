"""Image sets: finding and preparing them, splits, the seeded order, augmentation, loaders.

The modules that read and prepare data sets (`datasets`, `image_folder`, `source`, `selection`,
`sizes`, `identity`, `duplicates`) import TFDS; the others do not.
"""
