"""The values that fields of the config can have, by name; the wings above read them here."""
PHASES = ('teacher', 'heads', 'student')
IDENTITY = ('data', 'teacher', 'computation', 'versions')  # What a run is made of, but its config.
PARTS = ('config', *IDENTITY)  # What `config.accept` may name.
DTYPES = ('float32', 'bfloat16')
ON_NAN = ('stop', 'rewind')
LOADERS = ('memory', 'streaming')
PADDING_MODES = ('zeros', 'reflect')
HEAD_KINDS = ('flatten', 'gap')
UNITS = ('epochs', 'steps')
OPTIMIZERS = ('sgd', 'adamw')
SCHEDULES = ('piecewise', 'cosine', 'constant')
CACHE_PLACES = ('device', 'host', 'disk')
TOGETHER_BY = ('auto', 'vmap', 'unrolled')


def fixed_views(cache: str) -> int:
  """Returns N of `config.compute.cache`='views:N', else 0."""
  return int(cache.removeprefix('views:')) if cache.startswith('views:') else 0
