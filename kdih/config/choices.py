"""The values that fields of the config can have, by name; the wings above read them here."""
import re

PHASES = ('teacher', 'heads', 'student')
RECIPES = ('paper', 'repdistiller')
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
  """N of `config.compute.cache`='views:N', else 0; ValueError where it is none of its values."""
  if cache in ('none', 'all_views'):
    return 0
  if not re.fullmatch(r'views:[1-9][0-9]{0,8}', cache):
    raise ValueError(f"{cache!r} is neither 'none', nor 'all_views', nor 'views:N', such as "
                     "'views:8'")
  return int(cache.removeprefix('views:'))
