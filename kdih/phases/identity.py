"""What a run is made of, and whether that is still the same when it resumes.

Its identity has five parts, `choices.PARTS`: the fields of the config that have to stay, the data,
the teacher, the computation and the versions. The manifest of a workdir holds them. Where one
differs, the run resumes only if `config.accept` names the part.
"""
import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
from etils import epath

from kdih import errors
from kdih.config import protocol
from kdih.config.schema import Flat
from kdih.data import identity as data_identity
from kdih.phases import computation, exported_variables
from kdih.phases.networks import Networks
from kdih.runtime import digests, provenance
from kdih.runtime.progress import say
from kdih.runtime.workdir import Workdir

if TYPE_CHECKING:
  import ml_collections

_LIBRARIES = ('jax', 'jaxlib', 'flax', 'optax')


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
    return {part: getattr(self, part) for part in ('data', 'teacher', 'computation', 'versions')}

  def of_teachers(self) -> 'Identity':
    """Returns it without what concerns students alone."""
    traced = {part: self.computation[part] for part in ('jax', 'teacher', 'heads')}
    return dataclasses.replace(self, computation=traced)

  def of_phase(self, phase: str) -> dict[str, Any]:
    """Returns digests of what the numbers of a phase depend on, for its result."""
    traced = {'jax': self.computation['jax'], 'models': digests.of_json(
        [self.computation.get(part) for part in ('teacher', 'heads', 'student')])}
    if phase.startswith('student/'):
      traced['method'] = self.computation['methods'][phase.split('/')[1]]
    return {'data': digests.of_json(self.data), 'computation': traced, 'versions': self.versions}

  def of_cache(self) -> dict[str, Any]:
    """Returns what teachers' outputs for the train split depend on, beside their variables."""
    traced = [self.computation['teacher'], self.computation['heads']]
    train = {'classes': self.data.get('classes'), 'train': self.data['splits']['train']}
    return {'data': digests.of_json(train),
            f'computation under jax {self.computation["jax"]}': digests.of_json(traced)}


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
  if teacher:
    data = exported_variables.describe(teachers.path / 'teacher' / 'variables')['data']
    found |= {name: data.get(name) for name in ('classes', 'mean', 'std', 'image_shape')}
  return {name: value for name, value in found.items() if value is not None}


def of_versions() -> dict[str, Any]:
  """Returns the libraries, the platform and what else the bits of a result depend on."""
  return {**provenance.versions(_LIBRARIES), 'platform': jax.default_backend(),
          'devices': jax.device_count(), 'x64': bool(jax.config.values['jax_enable_x64']),
          'prng': jax.config.values['jax_default_prng_impl'],
          'xla_flags': os.environ.get('XLA_FLAGS', '')}


def check_config(workdir: Workdir, config: dict[str, Any], *, student: bool = True) -> list[str]:
  """Checks that a config can resume the run in a workdir.

  Args:
    workdir: of the run; perhaps there is none yet.
    config: of this command, as nested dicts.
    student: whether students are trained there too.

  Returns:
    The differences that `config.accept` accepts.

  Raises:
    ConfigError: another difference; all of them are named.
  """
  manifest = workdir.manifest()
  if manifest is None:
    return []
  begun = _begun(workdir.path) if student else ()
  before, now = ({**protocol.fixed(its, student=student), **protocol.methods(its, begun)}
                 for its in (manifest['config'], config))
  return compare_configs(workdir, before, now, config['accept'])


def check_swept(workdir: Workdir, config: dict[str, Any]) -> None:
  """Checks that a run of a sweep can share its tables with those of a config.

  Raises:
    ConfigError: they differ in more than a sweep varies; each difference is named.
  """
  manifest = workdir.manifest()
  if manifest is not None:
    before, now = ({**protocol.swept(its), **protocol.methods(its, _begun(workdir.path))}
                   for its in (manifest['config'], config))
    compare_configs(workdir, before, now, config['accept'])


def compare_configs(workdir: Workdir, before: Flat, now: Flat, accept: Sequence[str]) -> list[str]:
  """As `check_config`, for what `kdih.config.protocol` says of two configs."""
  return _accepted(workdir, {'config': protocol.differences(before, now)}, accept)


def check(workdir: Workdir, now: Identity, config: dict[str, Any]) -> list[str]:
  """Checks that the other parts are those of the run in a workdir; says what other versions run it.

  Args:
    workdir: of the run; perhaps there is none yet.
    now: what it would be made of.
    config: of this command, as nested dicts.

  Returns:
    The differences that `config.accept` accepts, those that were accepted before first.

  Raises:
    ConfigError: another difference; all of them are named.
  """
  manifest = workdir.manifest() or {}
  before = manifest.get('identity') or {}
  stored = {part: before.get(part) or {} for part in now.parts()}
  said, refused = _versions(stored['versions'], now.versions, config)
  for line in said:
    say(f'{workdir.path}: {line}')
  found = {'data': data_identity.differences(stored['data'], now.data),
           'teacher': _teacher(stored['teacher'], now.teacher),
           'computation': computation.differences(stored['computation'], now.computation),
           'versions': refused}
  return [*manifest.get('accepted', ()), *_accepted(workdir, found, config['accept'])]


def record(workdir: Workdir, now: Identity, config: 'ml_collections.ConfigDict') -> None:
  """Writes the manifest of a run; what it held of methods that are not named now is kept."""
  before = (workdir.manifest() or {}).get('identity') or {}
  parts, known = now.parts(), before.get('computation') or {}
  if 'methods' in now.computation and known.get('jax') == now.computation['jax']:
    methods = {**known.get('methods', {}), **now.computation['methods']}
    parts['computation'] = {**now.computation, 'methods': methods}
  workdir.open(config, identity=parts, accepted=list(now.accepted))


def _teacher(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
  words = {'variables': 'its variables are others', 'heads': "its heads' variables are others",
           'weights': 'the weights of its members are others', 'classes': 'its classes are others',
           'mean': 'it is normalised by another mean', 'std': 'it is normalised by another std',
           'image_shape': 'it takes images of another size'}
  return [text for name, text in words.items()
          if name in before and before[name] != now.get(name)]


def _versions(
    before: Mapping[str, Any], now: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[list[str], list[str]]:
  """Returns what is another version, and what of it changes numbers on the same platform."""
  changed = {name: f'{name} was {before[name]!r} and is {value!r}' for name, value in now.items()
             if name in before and before[name] != value}
  telling = {'x64', 'prng', *(() if config['sync_batch_norm'] else ('devices',))}
  if 'platform' in changed:
    telling = set()
  return ([line for name, line in changed.items() if name not in telling],
          [line for name, line in changed.items() if name in telling])


def _begun(workdir: epath.Path) -> list[str]:
  """Returns the methods by which students have begun to be taught."""
  return sorted(path.name for path in workdir.glob('student/*'))


def _accepted(
    workdir: Workdir, found: dict[str, list[str]], accept: Sequence[str]
) -> list[str]:
  """Returns the differences in parts that are accepted; raises ConfigError for the others."""
  refused = {part: lines for part, lines in found.items() if lines and part not in accept}
  if refused:
    said = '; '.join(f'{part}: {", ".join(lines)}' for part, lines in refused.items())
    raise errors.ConfigError(
        f'--workdir: {workdir.path} holds a run that was made of something else; {said}. Choose '
        f'another workdir, set this back, or resume knowingly with --accept={",".join(refused)}')
  accepted = [f'{part}: {line}' for part, lines in found.items() for line in lines]
  for line in accepted:
    say(f'{workdir.path}: accepted: {line}')
  return accepted
