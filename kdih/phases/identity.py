"""The identity of a run: the data, the teacher, the computation and the versions.

With the fields of its config that must not change, these are `choices.PARTS`. The manifest of a
workdir stores them; `resume` compares them.
"""
import dataclasses
from typing import TYPE_CHECKING, Any

import jax

from kdih.cohort.cache.store import COMPUTATION
from kdih.config import choices
from kdih.phases import computation, exported_variables
from kdih.phases.networks import Networks
from kdih.runtime import digests, files, provenance
from kdih.runtime.workdir import Workdir, resolved

if TYPE_CHECKING:
  import ml_collections

_LIBRARIES = ('jax', 'jaxlib', 'flax', 'optax')
# The fields of a teacher's identity that the result of a phase depends on, by `Method.taught_by`.
_TEACHING = {'labels': (), 'teacher': ('variables',), 'cohort': ('variables', 'heads')}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Identity:
  """The identity of a run now, and the accepted differences to its identity at the start.

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
    """Returns the parts that a manifest stores, beside the config."""
    return {part: getattr(self, part) for part in choices.IDENTITY}

  def of_teachers(self) -> 'Identity':
    """Returns the identity without the parts that only concern students."""
    traced = {part: self.computation[part] for part in ('jax', 'teacher', 'heads')}
    return dataclasses.replace(self, computation=traced)

  def of_phase(self, phase: str, taught_by: str) -> dict[str, Any]:
    """Returns digests of everything that the numbers of a phase depend on, for its result.

    Args:
      phase: its name.
      taught_by: see `kdih.distillation.method.Method`.
    """
    traced = {'jax': self.computation['jax'], 'models': digests.of_json(
        [self.computation.get(part) for part in ('teacher', 'heads', 'student')])}
    if phase.startswith('student/'):
      traced['method'] = self.computation['methods'][phase.split('/')[1]]
    # The teacher may be trained again: its folder then holds another one than the student's.
    teacher = {name: self.teacher[name] for name in _TEACHING[taught_by] if name in self.teacher}
    return {'data': digests.of_json(self.data), 'teacher': teacher, 'computation': traced,
            'versions': self.versions}

  def of_cache(self) -> dict[str, Any]:
    """Returns what the cached outputs depend on, beside the variables of the teacher and heads."""
    traced = [self.computation['teacher'], self.computation['heads']]
    train = {'classes': self.data.get('classes'), 'train': self.data['splits']['train']}
    return {'data': digests.of_json(train),
            f'{COMPUTATION}{self.computation["jax"]}': digests.of_json(traced)}


def collect(built: Networks, teachers: Workdir, content: dict[str, Any]) -> Identity:
  """Returns the identity of a run now.

  Args:
    built: its networks.
    teachers: the workdir of teacher and heads.
    content: of its data set, from `kdih.data.identity.identify`.
  """
  return Identity(data=content, teacher=of_teacher(teachers),
                  computation=computation.identify(built), versions=of_versions())


def of_teacher(teachers: Workdir) -> dict[str, Any]:
  """Returns the identity of the teacher and the heads in a workdir, if they are finished.

  It has digests of their variables and of the members' weights, and the teacher's classes, its
  normalisation and the shape of its images.
  """
  teacher, heads = teachers.result('teacher') or {}, teachers.result('heads') or {}
  found = {'variables': teacher.get('fingerprint'), 'heads': heads.get('fingerprint'),
           'weights': digests.of_json(heads['weights']) if 'weights' in heads else None}
  variables = teachers.path / 'teacher' / 'variables'
  if teacher and files.exists(variables):  # Loading it raises an error if it is needed and missing.
    data = exported_variables.describe(variables, '--workdir').get('data', {})
    found |= {name: data.get(name) for name in ('classes', 'mean', 'std', 'image_shape')}
  return {name: value for name, value in found.items() if value is not None}


def of_versions() -> dict[str, Any]:
  """Returns versions and settings that the bits of a result depend on."""
  made_by = provenance.collect()
  return {**{name: made_by['versions'][name] for name in _LIBRARIES},
          'platform': made_by['platform'], 'devices': len(made_by['devices']),
          'x64': bool(jax.config.values['jax_enable_x64']),
          'prng': jax.config.values['jax_default_prng_impl'], 'xla_flags': made_by['xla_flags']}


def record(workdir: Workdir, now: Identity, config: 'ml_collections.ConfigDict') -> None:
  """Writes the manifest of a run.

  The manifest keeps earlier methods that this config lacks, and the identity of an earlier teacher
  until the teacher has been trained again. The caller must hold the lock of the manifest.
  """
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
