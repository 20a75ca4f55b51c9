"""How the numbers are computed: what changes the speed of a run, and hardly what it learns."""
import re

import ml_collections


def compute() -> ml_collections.ConfigDict:
  """Every field of `config.compute`; it changes no number but by rounding unless it says so."""
  compute = ml_collections.ConfigDict()
  # Updates in one compiled call, between which nothing is looked at, a SIGTERM least of all. 0
  # chooses: 1 on a CPU or with a streaming loader, else all between two looks at the metrics.
  compute.steps_per_call = 0
  # Batches that the streaming loader puts on the devices ahead of the step.
  compute.prefetch = 2
  # Parts that each device cuts its share of a batch into, one after the other, to save memory; a
  # batch norm sees one part at a time, so that its numbers change, and a memory such as that of
  # `crd` takes in one part at a time.
  compute.accumulate = 1
  # Keep results of convolutions and products alone for the backward pass of what learns, which
  # computes the other activations again, to save memory.
  compute.remat = False
  # Fold the batch norms of the frozen teacher into its convolutions.
  compute.fold_batch_norm = True
  # The numbers that the frozen teacher computes in: 'float32', 'bfloat16', which changes what it
  # says, or '' for `dtype`.
  compute.teacher_dtype = ''
  # Teach by the cohort's mean soft label where its members share a temperature.
  compute.mean_soft_label = True
  # What teachers say, computed once: 'none', 'all_views' of every image under the augmentation, or
  # 'views:N', as many fixed views of each image, which are all that students see: another recipe.
  compute.cache = 'none'
  # Train the heads from such a cache too, of the features at the taps: all of a feature is kept, so
  # that it takes 'views:N'. With it, heads see these views alone.
  compute.cache_taps = False
  # Where it is kept: 'device', 'host' or 'disk' (in the workdir of the teacher).
  compute.cache_place = 'device'
  # On a CPU, keep the memory that a step has freed for the next one.
  compute.keep_freed_memory = True
  # Where compiled programs are kept for the next start; '' is ~/.cache/kdih/compiled.
  compute.compilation_cache = ''
  return compute


def fixed_views(cache: str) -> int:
  """N of `config.compute.cache`='views:N', else 0; ValueError where it is none of its values."""
  if cache in ('none', 'all_views'):
    return 0
  if not re.fullmatch(r'views:[1-9][0-9]{0,8}', cache):
    raise ValueError(f"{cache!r} is neither 'none', nor 'all_views', nor 'views:N', such as "
                     "'views:8'")
  return int(cache.removeprefix('views:'))
