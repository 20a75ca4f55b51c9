"""What a run is made of: the data, the teacher, the computation and the versions.

With the fields of its config that have to stay, these are the parts of its identity,
`choices.PARTS`. The manifest of a workdir holds them; `resume` compares them.
"""
import dataclasses
from typing import TYPE_CHECKING, Any

import jax

from kdih.cohort.cache.store import COMPUTATION
from kdih.config import choices
from kdih.phases import computation, exported_variables
from kdih.phases.networks import Networks
from kdih.runtime import digests, provenance
from kdih.runtime.workdir import Workdir, resolved

if TYPE_CHECKING:
  import ml_collections

_LIBRARIES = ('jax', 'jaxlib', 'flax', 'optax')
# What of a teacher's identity those depend on who learn of it, by `Method.taught_by`.
_TEACHING = {'labels': (), 'teacher': ('variables',), 'cohort': ('variables', 'heads')}


@dataclasses.dataclass(frozen=True)
class Identity:
  """What a run is made of now, and which differences to what it was made of are accepted.

  Attributes:
    data: content of the data set, see `kdih.data.identity`.
    teacher: see `of_teacher`.
    computation: see `kdih.phases.computation`.
    versions: see `of_versions`.
    accepted: the differences, such as 'data: 40 images of train were added'.
  """

  data: dict[str, Any]
  teacher: dict[str, Any]
  computation: dict[str, Any]
  versions: dict[str, Any]
  accepted: tuple[str, ...] = ()

  def parts(self) -> dict[str, Any]:
    """Returns what a manifest holds of it, beside the config."""
    return {part: getattr(self, part) for part in choices.IDENTITY}

  def of_teachers(self) -> 'Identity':
    """Returns it without what concerns students alone."""
    traced = {part: self.computation[part] for part in ('jax', 'teacher', 'heads')}
    return dataclasses.replace(self, computation=traced)

  def of_phase(self, phase: str, taught_by: str) -> dict[str, Any]:
    """Returns digests of what the numbers of a phase depend on, for its result.

    Args:
      phase: its name.
      taught_by: see `kdih.distillation.method.Method`.
    """
    traced = {'jax': self.computation['jax'], 'models': digests.of_json(
        [self.computation.get(part) for part in ('teacher', 'heads', 'student')])}
    if phase.startswith('student/'):
      traced['method'] = self.computation['methods'][phase.split('/')[1]]
    # A teacher may be done anew, and its folder then holds another than the one that taught.
    teacher = {name: self.teacher[name] for name in _TEACHING[taught_by] if name in self.teacher}
    return {'data': digests.of_json(self.data), 'teacher': teacher, 'computation': traced,
            'versions': self.versions}

  def of_cache(self) -> dict[str, Any]:
    """Returns what teachers' outputs for the train split depend on, beside their variables."""
    traced = [self.computation['teacher'], self.computation['heads']]
    train = {'classes': self.data.get('classes'), 'train': self.data['splits']['train']}
    return {'data': digests.of_json(train),
            f'{COMPUTATION}{self.computation["jax"]}': digests.of_json(traced)}


def collect(built: Networks, teachers: Workdir, content: dict[str, Any]) -> Identity:
  """Returns what a run is made of now.

  Args:
    built: its networks.
    teachers: the workdir of teacher and heads.
    content: of its data set, from `kdih.data.identity.identify`.
  """
  return Identity(content, of_teacher(teachers), computation.identify(built), of_versions())


def of_teacher(teachers: Workdir) -> dict[str, Any]:
  """Returns what tells teacher and heads in a workdir from others, as far as they are finished.

  The digests of their variables and of the weights of the members; the teacher's classes, its
  normalisation and the size of its images.
  """
  teacher, heads = teachers.result('teacher') or {}, teachers.result('heads') or {}
  found = {'variables': teacher.get('fingerprint'), 'heads': heads.get('fingerprint'),
           'weights': digests.of_json(heads['weights']) if 'weights' in heads else None}
  variables = teachers.path / 'teacher' / 'variables'
  if teacher and variables.exists():  # If it is gone, whoever needs it says so.
    data = exported_variables.describe(variables)['data']
    found |= {name: data.get(name) for name in ('classes', 'mean', 'std', 'image_shape')}
  return {name: value for name, value in found.items() if value is not None}


def of_versions() -> dict[str, Any]:
  """Returns the libraries, the platform and what else the bits of a result depend on."""
  made_by = provenance.collect()
  return {**{name: made_by['versions'][name] for name in _LIBRARIES},
          'platform': made_by['platform'], 'devices': len(made_by['devices']),
          'x64': bool(jax.config.values['jax_enable_x64']),
          'prng': jax.config.values['jax_default_prng_impl'], 'xla_flags': made_by['xla_flags']}


def record(workdir: Workdir, now: Identity, config: 'ml_collections.ConfigDict') -> None:
  """Writes the manifest of a run; what it held of methods that are not there now is kept, and of a
  teacher that is to be done anew."""
  manifest = workdir.manifest() or {'config': {}}
  before, parts = manifest.get('identity') or {}, now.parts()
  parts['teacher'] = {**(before.get('teacher') or {}), **now.teacher}
  known = before.get('computation') or {}
  if 'methods' in now.computation and known.get('jax') == now.computation['jax']:
    methods = {**known.get('methods', {}), **now.computation['methods']}
    parts['computation'] = {**now.computation, 'methods': methods}
  fields = resolved(config)
  fields['methods'] = {**manifest['config'].get('methods', {}), **fields['methods']}
  workdir.open(fields, identity=parts, accepted=list(now.accepted))
