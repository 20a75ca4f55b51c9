"""Image sets: finding and preparing them, splits, the seeded order, augmentation, loaders.

What reads and prepares data sets (`datasets`, `source`, `selection`, `sizes`, `identity`,
`duplicates`) imports TFDS; the rest does not.
"""
