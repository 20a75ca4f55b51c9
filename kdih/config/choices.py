"""The names that fields of the config accept as values; the packages above read them here."""
PHASES = ('teacher', 'heads', 'student')
IDENTITY = ('data', 'teacher', 'computation', 'versions')  # The identity of a run, beside config.
PARTS = ('config', *IDENTITY)  # The values of `config.accept`.
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
  """Returns N if `config.compute.cache` is 'views:N', else 0."""
  return int(cache.removeprefix('views:')) if cache.startswith('views:') else 0
