"""Every field of the config, declared once: default, values, and what changing it means.

A config file defines `get_config(arg)`: it takes `base()`, sets what differs, and returns it.
`README.md` beside this file lists the fields; `python -m kdih.config` writes it.
Importing this module must stay light: it runs before the settings are known to be right.
"""
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kdih.config import choices, method_presets, recipes
from kdih.config.schema import BY_TEACHER, CACHES, FREE, OUTPUTS, TAPS, Field, flat, nested
from kdih.config.values import NAME, RATE, Choice, Flag, Group, Kind, Many, Number, Text, Whole

if TYPE_CHECKING:
  import ml_collections

_SEED = Whole(0, 2**32 - 1)
_COUNT = Whole(1)
_LENGTH = Number(0, 1e7, open_low=True)
_CACHE = Text(r'none|all_views|views:[1-9][0-9]{0,8}',
              "'none', 'all_views' or 'views:N', such as 'views:8'")
# What changes no number of a run, or none but by rounding.
_ANY_TIME: dict[str, Any] = dict(resume=FREE, averaged=FREE)
_ROUNDING: dict[str, Any] = dict(averaged=FREE)
# What a group trains by whatever the recipe.
_BY_ANY_RECIPE: dict[str, dict[str, Any]] = {
    'student.prepare': dict(length=40.0, milestones=(20.0, 30.0), schedule='constant')}


def _is_set(path: str, config: Mapping[str, Any]) -> bool:
  """Compares whether there is a path: it may change, for what lies there is compared."""
  del config
  return bool(path)


def _recipe(cache: str, config: Mapping[str, Any]) -> str:
  """Compares fixed views, which are all that students see; a cache of all views changes nothing."""
  del config
  return cache if str(cache).startswith('views:') else 'none'


def _teacher_dtype(dtype: str, config: Mapping[str, Any]) -> str:
  return dtype or config['dtype']


def _seed_of_views(seed: int, config: Mapping[str, Any]) -> int:
  """Compares the seed where it chooses fixed views; all views need none."""
  return max(seed, 0) if _recipe(config['compute.cache'], config) != 'none' else 0


def _heads_do_without(config: Mapping[str, Any]) -> bool:
  return not config['compute.cache_taps']


def _training(group: str, **meaning: Any) -> dict[str, Field]:
  """Returns the fields that say how something trains, by the paper's recipe."""
  recipe = {'schedule': 'piecewise', **recipes.RECIPES['paper']['train'],
            **_BY_ANY_RECIPE.get(group, {})}

  def field(default: Any, kind: Kind, doc: str) -> Field:
    return Field(default=default, kind=kind, doc=doc, **meaning)

  fields = {
      'unit': field('epochs', Choice(choices.UNITS),
                    'What `length`, `milestones`, `warmup` and `evaluate_every` count.'),
      'length': field(recipe['length'], _LENGTH, 'How long it trains.'),
      'evaluate_every': field(1.0, Number(0, 1e9, open_low=True),
                              'Between two evaluations on the validation split, each with a '
                              'checkpoint.'),
      'global_batch_size': field(64, Whole(1, 10_000_000), 'Images in one step, over all devices.'),
      'optimizer': field('sgd', Choice(choices.OPTIMIZERS),
                         'Weight decay applies to every parameter.'),
      'momentum': field(0.9, Number(0, 1, open_high=True), 'Of `sgd`.'),
      'nesterov': field(recipe['nesterov'], Flag(), "Nesterov's momentum, of `sgd`."),
      'weight_decay': field(5e-4, Number(0, 10), 'Added to the gradient, times the parameter.'),
      'schedule': field(recipe['schedule'], Choice(choices.SCHEDULES),
                        '`piecewise` multiplies the learning rate by `decay` at each milestone; '
                        '`cosine` lets it fall to 0.'),
      'learning_rate': field(recipe['learning_rate'], RATE, 'At the beginning.'),
      'milestones': field(recipe['milestones'], Many(_LENGTH), 'Of `piecewise`.'),
      'decay': field(recipe['decay'], Number(0, 100, open_low=True), 'Of `piecewise`.'),
      'warmup': field(0.0, Number(0, 1e7), 'A linear rise of the learning rate from 0.'),
  }
  return {f'{group}.{name}': field for name, field in fields.items()}


# What each group of fields is about.
GROUPS = {
    'compute': 'How it is computed. A field here changes no number but by rounding, unless it '
               'says so.',
    'distributed': 'Several processes that run as one. The first three fields have a short flag '
                   'each, such as `--process_id=1`.',
    'data': 'The data set, its splits, and how images are shown.',
    'teacher': 'The first phase.',
    'teacher.train': 'how the teacher trains. Runs that differ here are averaged if their teachers '
                     'are the same.',
    'heads': 'The second phase: a classifier on each tap of the frozen teacher.',
    'heads.train': 'how the heads train, all at once.',
    'student': 'The third phase.',
    'student.train': 'how students train, whatever the method.',
    'student.prepare': 'how methods train that prepare something first: fitnets, ab, ft, tofd.',
    'sweep': 'What `python -m kdih.sweep` runs. Each field has a short flag: `--seeds=30,50`.',
}

FIELDS: dict[str, Field] = {
    'seed': Field(
        default=30, kind=_SEED, averaged=FREE, varies=True,
        doc='Seeds initialisation, order and augmentation. Every method starts from the same '
            'student.'),
    'phases': Field(
        default=choices.PHASES, kind=Many(Choice(choices.PHASES), 1, distinct=True), **_ANY_TIME,
        doc='The phases to run, in this order. A finished one is not run again.'),
    'accept': Field(
        default=(), kind=Many(Choice(choices.PARTS), distinct=True), **_ANY_TIME,
        doc='Resume although these parts of what the run is made of have changed. The results of '
            'what follows say so.'),
    'dtype': Field(
        default='float32', kind=Choice(choices.DTYPES), caches=CACHES,
        doc='What models compute in. Parameters stay float32.'),
    'sync_batch_norm': Field(
        default=True, kind=Flag(),
        doc='Take batch-norm statistics over all devices: the same numbers on any number of them.'),
    'deterministic': Field(
        default=True, kind=Flag(), **_ROUNDING,
        doc='Use bit-reproducible kernels on a GPU, where they cost speed. CPUs and TPUs always '
            'do.'),
    'on_nan': Field(
        default='stop', kind=Choice(choices.ON_NAN), **_ANY_TIME,
        doc='What a loss that is not finite does: `stop` ends the run; `rewind` goes back to the '
            'last checkpoint with half the learning rate, at most `max_rewinds` times a phase.'),
    'max_rewinds': Field(
        default=3, kind=Whole(0, 100), **_ANY_TIME, doc='See `on_nan`.'),
    'profile': Field(
        default=False, kind=Flag(), **_ANY_TIME,
        doc='Write a profile of a few steps in every phase, once an hour, for TensorBoard.'),
    'log_every_steps': Field(
        default=50, kind=_COUNT, **_ANY_TIME,
        doc='Steps between two progress lines. The loss is checked for NaN at each.'),
    'dry_run': Field(
        default=False, kind=Flag(), **_ANY_TIME,
        doc='Say what it will take, and train nothing: time and memory of each phase, from a few '
            'steps on made images. The data set need not be there, and nothing is written.'),
    'dry_run_seconds': Field(
        default=120, kind=Whole(0, 1_000_000), **_ANY_TIME,
        doc='After so long, `dry_run` measures no further step, and scales those that are left. '
            'The first is measured in any case, unless this is 0.'),

    'compute.steps_per_call': Field(
        default=0, kind=Whole(0, 100_000), **_ANY_TIME,
        doc='Updates in one compiled call, between which nothing is looked at, a SIGTERM least of '
            'all. 0 chooses: 1 on a CPU or with a streaming loader, else all between two looks at '
            'the metrics.'),
    'compute.prefetch': Field(
        default=2, kind=Whole(0, 1000), **_ANY_TIME,
        doc='Batches that the streaming loader puts on the devices ahead of the step.'),
    'compute.accumulate': Field(
        default=1, kind=_COUNT,
        doc='Parts that each device cuts its share of a batch into, one after the other, to save '
            'memory; on a CPU it saves little. A batch norm sees one part at a time, so that its '
            'numbers change; a memory such as that of `crd` takes in one part at a time.'),
    'compute.remat': Field(
        default=False, kind=Flag(), **_ANY_TIME,
        doc='Keep results of convolutions and products alone for the backward pass, which computes '
            'the other activations again, to save memory.'),
    'compute.fold_batch_norm': Field(
        default=True, kind=Flag(), **_ROUNDING,
        doc="Fold the batch norms of the frozen teacher, if it is one of kdih's models, into its "
            'convolutions.'),
    'compute.teacher_dtype': Field(
        default='', kind=Choice(('', *choices.DTYPES)), averaged=_teacher_dtype, caches=CACHES,
        cached=_teacher_dtype,
        doc='What the frozen teacher computes in; `bfloat16` changes its logits. Empty: `dtype`.'),
    'compute.mean_soft_label': Field(
        default=True, kind=Flag(), caches=(OUTPUTS,), **_ROUNDING,
        doc="Teach by the cohort's mean soft label where its members share a temperature."),
    'compute.cache_members': Field(
        default=False, kind=Flag(), **_ROUNDING,
        doc="Let the cache of `dih` hold the logits of every member, from which each weighting and "
            'temperature is taught: one table for all of them, as many times as large as there are '
            'members. Else it holds the mean soft label, another one for every temperature.'),
    'compute.cache': Field(
        default='none', kind=_CACHE, averaged=_recipe, caches=CACHES,
        student_only=_heads_do_without,
        doc="The teachers' outputs, computed once: `none`, `all_views` of every image under the "
            'augmentation, or `views:N`, as many fixed views of each image, which are all that '
            'students see: another recipe.'),
    'compute.cache_taps': Field(
        default=False, kind=Flag(),
        doc='Train the heads from such a cache too, of the features at the taps: all of a feature '
            'is kept, so that it takes `views:N`. With it, heads see these views alone.'),
    'compute.cache_place': Field(
        default='device', kind=Choice(choices.CACHE_PLACES), **_ANY_TIME,
        doc='Where it is kept; `disk` is in the workdir of the teacher.'),
    'compute.keep_freed_memory': Field(
        default=True, kind=Flag(), **_ANY_TIME,
        doc='On a CPU, keep the memory that a step has freed for the next one.'),
    'compute.compilation_cache': Field(
        default='', kind=Text(), **_ANY_TIME,
        doc='Where compiled programs are kept for the next start; empty: ~/.cache/kdih/compiled.'),

    'distributed.coordinator': Field(
        default='', kind=Text(), **_ANY_TIME,
        doc='HOST:PORT of process 0, where several run as one. Empty: see `detect`.'),
    'distributed.num_processes': Field(
        default=1, kind=Whole(1, 100_000), **_ANY_TIME, doc='How many processes there are.'),
    'distributed.process_id': Field(
        default=0, kind=Whole(0, 100_000), **_ANY_TIME, doc='Which of them this is, from 0.'),
    'distributed.detect': Field(
        default=True, kind=Flag(), **_ANY_TIME,
        doc='Join the processes of the Slurm job or TPU slice that this one is part of.'),
    'distributed.timeout': Field(
        default=300, kind=_COUNT, **_ANY_TIME, doc='Seconds to wait for the others at the start.'),

    'data.name': Field(
        default='digits', kind=NAME, caches=CACHES, described=True,
        doc="A TFDS name, such as `cifar100` or `imagenet2012/5.1.0`, or one of kdih's own: "
            '`digits`, `tiny_imagenet`, `image_folder`.'),
    'data.folder': Field(
        default='', kind=Text(), **_ANY_TIME,
        doc='The images of `image_folder`, in FOLDER/SPLIT/CLASS/*.jpg (.jpeg, .png), which are '
            'read where they lie. The folder may move: its content is compared.'),
    'data.data_dir': Field(
        default='', kind=Text(), **_ANY_TIME,
        doc="Where TFDS keeps its data sets. Empty is TFDS's default, ~/tensorflow_datasets. From "
            'an object store, such as gs://bucket/tfds, a data set is copied to the local disk.'),
    'data.train_split': Field(
        default='train', kind=NAME, caches=CACHES, described=True,
        doc='A TFDS split, slices included: `train[:90%]`.'),
    'data.test_split': Field(
        default='test', kind=NAME, described=True,
        doc='Likewise. It is read once, at the end, and must share no image with `train_split`.'),
    'data.image_key': Field(
        default='image', kind=NAME, caches=CACHES, described=True,
        doc='The feature that holds the image.'),
    'data.label_key': Field(
        default='label', kind=NAME, caches=CACHES, described=True,
        doc='The feature that holds the class.'),
    'data.image_size': Field(
        default=0, kind=Whole(0, 16384), caches=CACHES,
        doc='Side in pixels that every image is resized to; 0 keeps them as they are.'),
    'data.mean': Field(
        default=(0.5,), kind=Many(Number(-1000, 1000), 1), caches=CACHES, described=True,
        doc='Per channel, of images scaled to [0, 1]; one number serves every channel.'),
    'data.std': Field(
        default=(0.5,), kind=Many(Number(1e-6, 1000), 1), caches=CACHES, described=True,
        doc='Likewise.'),
    'data.padding': Field(
        default=4, kind=Whole(0, 1024), caches=CACHES,
        doc='Augmentation: pad by so many pixels and crop back at random.'),
    'data.padding_mode': Field(
        default='zeros', kind=Choice(choices.PADDING_MODES), caches=CACHES,
        doc='What to pad with.'),
    'data.flip': Field(
        default=True, kind=Flag(), caches=CACHES, doc='Augmentation: mirror every second image.'),
    'data.validation_fraction': Field(
        default=0.1, kind=Number(0, 1, open_high=True), caches=CACHES, described=True,
        doc='Cut from the train split to choose checkpoints. 0: the last one is chosen.'),
    'data.validation_seed': Field(
        default=0, kind=Whole(0, 2**63 - 1), caches=CACHES, described=True,
        doc='Seeds which images are cut.'),
    'data.loader': Field(
        default='memory', kind=Choice(choices.LOADERS), **_ROUNDING,
        doc='`memory` keeps the split on the device; `streaming` reads it with tf.data.'),
    'data.order_seed': Field(
        default=-1, kind=Whole(-1, 2**32 - 1), caches=CACHES, cached=_seed_of_views,
        doc='Seeds order and augmentation in place of `seed`, so that runs of several seeds see '
            'the same batches; -1 is `seed`.'),
    'data.eval_global_batch_size': Field(
        default=500, kind=Whole(1, 10_000_000), **_ROUNDING,
        doc='Images in one evaluation step, over all devices.'),

    'teacher.name': Field(
        default='resnet110', kind=NAME, averaged=BY_TEACHER, varies=True,
        doc='A name of kdih.models, or the import path of your own linen module: '
            '`my_pkg.nets:MyNet`.'),
    'teacher.kwargs': Field(
        default={}, kind=Group(), averaged=BY_TEACHER, varies=True,
        doc='Further arguments of the module.'),
    'teacher.variables': Field(
        default='', kind=Text(), resume=_is_set, averaged=BY_TEACHER,
        doc='A `variables` folder of an earlier run to start from, which may move; empty trains '
            'the teacher.'),
    **_training('teacher.train', averaged=BY_TEACHER),

    'heads.kind': Field(
        default='flatten', kind=Choice(choices.HEAD_KINDS),
        doc="`flatten` is the paper's: all of the feature into one Dense. `gap` pools it first."),
    'heads.taps': Field(
        default=(), kind=Many(NAME, distinct=True), caches=(TAPS,),
        doc="The teacher's taps that get a head, in this order; () is every tap that it sows."),
    'heads.variables': Field(
        default='', kind=Text(), resume=_is_set, averaged=FREE,
        doc='A `variables` folder of heads trained on the same teacher, which may move; empty '
            'trains them.'),
    **_training('heads.train'),

    'student.name': Field(
        default='resnet8', kind=NAME, student_only=True, varies=True,
        doc='As `teacher.name`.'),
    'student.kwargs': Field(
        default={}, kind=Group(), student_only=True, varies=True,
        doc='As `teacher.kwargs`.'),
    'student.methods': Field(
        default=('ce', 'kd', 'dih'), kind=Many(NAME, 1, distinct=True), student_only=True,
        **_ANY_TIME,
        doc='How the student is taught: names of entries in `methods`, each trained as '
            'student/NAME/.'),
    'student.taps': Field(
        default=(), kind=Many(NAME, distinct=True), student_only=True,
        doc='The taps of the student that feature methods compare, pairwise from the first; () is '
            'every tap that the model sows.'),
    'student.teacher_taps': Field(
        default=(), kind=Many(NAME, distinct=True), student_only=True,
        doc='Those of the teacher, likewise.'),
    **_training('student.train', student_only=True),
    **_training('student.prepare', student_only=True),

    'sweep.pairs': Field(
        default=(), kind=Many(NAME, distinct=True), **_ANY_TIME,
        doc="'teacher:student', by name; () is every one of `students` with the config's teacher."),
    'sweep.students': Field(
        default=(), kind=Many(NAME, distinct=True), **_ANY_TIME,
        doc="Names of students; () is the config's."),
    'sweep.methods': Field(
        default=(), kind=Many(NAME, distinct=True), **_ANY_TIME,
        doc='Names of entries in `methods`; () is `student.methods`.'),
    'sweep.seeds': Field(
        default=(30, 50, 67), kind=Many(_SEED, 1, distinct=True), **_ANY_TIME,
        doc="Seeds of the students; teacher and heads are trained once, with the config's seed."),
    'sweep.alphas': Field(
        default=(), kind=Many(Number(0, 1), distinct=True), **_ANY_TIME,
        doc='Every method also with these in the place of its `alpha`; () is its own.'),
    'sweep.learning_rates': Field(
        default=(), kind=Many(RATE, distinct=True), **_ANY_TIME,
        doc='Every method also at these learning rates; () is its own.'),
    'sweep.together': Field(
        default=False, kind=Flag(), **_ANY_TIME,
        doc='Train the seeds of a student by one method and its variants as one program, which '
            'share every batch; seeds need `data.order_seed`.'),
    'sweep.together_by': Field(
        default='auto', kind=Choice(choices.TOGETHER_BY), **_ANY_TIME,
        doc='How; `auto` chooses for the device.'),
}
# Fields of earlier versions, that may still stand in their manifests and changed no number.
RETIRED = ('sweep.dry_run',)
TRAININGS = ('teacher.train', 'heads.train', 'student.train', 'student.prepare')


def of_recipe(recipe: str) -> dict[str, Any]:
  """Returns every field but those of `methods` with its default in a recipe, as a flat config."""
  values = {name: field.default for name, field in FIELDS.items()}
  trained = recipes.get(recipe)['train']
  return values | {f'{group}.{name}': value for group in TRAININGS
                   for name, value in {**trained, **_BY_ANY_RECIPE.get(group, {})}.items()}


def base(recipe: str = 'paper') -> 'ml_collections.ConfigDict':
  """Returns a config with the defaults of a recipe, one of `recipes.RECIPES`.

  Raises:
    ConfigError: there is no such recipe.
  """
  import ml_collections  # Programs of a `plain` config do without.

  config = ml_collections.ConfigDict(nested(of_recipe(recipe)))
  for role in ('teacher', 'student'):  # Here an option may have values of several types.
    config[role].kwargs = ml_collections.ConfigDict(type_safe=False)
  config.methods = ml_collections.ConfigDict(method_presets.methods(recipe), type_safe=False)
  return config


def defaults() -> dict[str, Any]:
  """Returns every field but those of `methods` with its default, as a flat config.

  It is what a field had that kdih did not have yet when an earlier run was begun.
  """
  return dict(flat({name: list(field.default) if isinstance(field.default, tuple) else field.default
                    for name, field in FIELDS.items()}))
