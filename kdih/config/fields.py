"""Declares every field of the config: its default, its values, and what a change of it means.

A config file defines `get_config(arg)`, which sets fields of `base()` and returns the config.
`README.md` beside this file lists the fields; `python -m kdih.config` prints it. This module must
not import anything slow, because programs import it before they have checked their settings.
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
# Fields that change no number of a run, and fields that change numbers only by rounding.
_ANY_TIME: dict[str, Any] = dict(resume=FREE, averaged=FREE)
_ROUNDING: dict[str, Any] = dict(averaged=FREE)
# Fields of a training that do not depend on the recipe.
_BY_ANY_RECIPE: dict[str, dict[str, Any]] = {
    'student.prepare': dict(length=40.0, milestones=(20.0, 30.0), schedule='constant')}


def _is_set(path: str, config: Mapping[str, Any]) -> bool:
  """Compares whether a path is set. The path may change, because the variables are compared."""
  del config
  return bool(path)


def _recipe(cache: str, config: Mapping[str, Any]) -> str:
  """Compares the number of fixed views, which change the training; all views do not."""
  del config
  return cache if str(cache).startswith('views:') else 'none'


def _teacher_dtype(dtype: str, config: Mapping[str, Any]) -> str:
  return dtype or config['dtype']


def _seed_of_views(seed: int, config: Mapping[str, Any]) -> int:
  """Compares the seed if it chooses the fixed views."""
  return max(seed, 0) if _recipe(config['compute.cache'], config) != 'none' else 0


def _heads_use_no_cache(config: Mapping[str, Any]) -> bool:
  return not config['compute.cache_taps']


def _training(group: str, **meaning: Any) -> dict[str, Field]:
  """Returns the fields of a training, with the defaults of the paper's recipe."""
  recipe = {'schedule': 'piecewise', **recipes.RECIPES['paper']['train'],
            **_BY_ANY_RECIPE.get(group, {})}

  def field(default: Any, kind: Kind, doc: str) -> Field:
    return Field(default=default, kind=kind, doc=doc, **meaning)

  fields = {
      'unit': field('epochs', Choice(choices.UNITS),
                    'The unit of `length`, `milestones`, `warmup` and `evaluate_every`.'),
      'length': field(recipe['length'], _LENGTH, 'The duration of the training.'),
      'evaluate_every': field(1.0, Number(0, 1e9, open_low=True),
                              'The time between two evaluations on the validation split. Each '
                              'evaluation saves a checkpoint.'),
      'global_batch_size': field(64, Whole(1, 10_000_000), 'Images in one step, over all devices.'),
      'optimizer': field('sgd', Choice(choices.OPTIMIZERS),
                         'The optimizer. Both apply weight decay to every parameter.'),
      'momentum': field(0.9, Number(0, 1, open_high=True), 'The momentum of `sgd`.'),
      'nesterov': field(recipe['nesterov'], Flag(), 'Use Nesterov momentum in `sgd`.'),
      'weight_decay': field(5e-4, Number(0, 10),
                            'The factor of the weight decay. `sgd` adds the decay to the gradient; '
                            '`adamw` subtracts it from the parameter.'),
      'schedule': field(recipe['schedule'], Choice(choices.SCHEDULES),
                        'The learning rate over time: `piecewise` multiplies it by `decay` at each '
                        'milestone, `cosine` lowers it to 0, `constant` keeps it.'),
      'learning_rate': field(recipe['learning_rate'], RATE, 'The initial learning rate.'),
      'milestones': field(recipe['milestones'], Many(_LENGTH),
                          'The times at which `piecewise` lowers the learning rate.'),
      'decay': field(recipe['decay'], Number(0, 100, open_low=True),
                     'The factor of the learning rate at each milestone of `piecewise`.'),
      'warmup': field(0.0, Number(0, 1e7),
                      'The time in which the learning rate rises linearly from 0.'),
  }
  return {f'{group}.{name}': field for name, field in fields.items()}


# The introduction of each group of fields in README.md.
GROUPS = {
    'compute': 'Speed and memory. These fields change the result of a step only by rounding, which '
               'training amplifies, except those whose description states a larger change.',
    'distributed': 'Several processes that run as one. Each of the first three fields has a short '
                   'flag, such as `--process_id=1`.',
    'data': 'The data set, its splits, and the augmentation of its images.',
    'teacher': 'The first phase: a teacher is trained or loaded.',
    'teacher.train': 'the training of the teacher. A report averages runs that differ here if '
                     'their teachers are the same.',
    'heads': 'The second phase: a classifier is trained on each tap of the frozen teacher.',
    'heads.train': 'the training of the heads, all together.',
    'student': 'The third phase: students are trained, one by each method.',
    'student.train': 'the training of students, by any method.',
    'student.prepare': 'the training of what a method prepares before its student: fitnets, ab, '
                       'ft, tofd.',
    'sweep': 'The runs of `python -m kdih.sweep`. Each field has a short flag: `--seeds=30,50`.',
}

FIELDS: dict[str, Field] = {
    'seed': Field(
        default=30, kind=_SEED, averaged=FREE, varies=True,
        doc='The seed of initialisation, order and augmentation. All methods start from the same '
            'initial student.'),
    'phases': Field(
        default=choices.PHASES, kind=Many(Choice(choices.PHASES), 1, distinct=True), **_ANY_TIME,
        doc='The phases to run, in this order. A finished phase is not run again.'),
    'accept': Field(
        default=(), kind=Many(Choice(choices.PARTS), distinct=True), **_ANY_TIME,
        doc='Resume although these parts of the identity of the run have changed. The results of '
            'all later phases record the change.'),
    'dtype': Field(
        default='float32', kind=Choice(choices.DTYPES), caches=CACHES,
        doc='The type in which models compute. Parameters remain float32.'),
    'sync_batch_norm': Field(
        default=True, kind=Flag(),
        doc='Compute batch-norm statistics over all devices. A step then has the same result on '
            'any number of devices, up to rounding.'),
    'deterministic': Field(
        default=True, kind=Flag(), **_ROUNDING,
        doc='Use bit-reproducible kernels on a GPU, which are slower. CPUs and TPUs are always '
            'bit-reproducible.'),
    'on_nan': Field(
        default='stop', kind=Choice(choices.ON_NAN), **_ANY_TIME,
        doc='The reaction to a loss that is not finite: `stop` ends the run; `rewind` returns to '
            'the last checkpoint and halves the learning rate, at most `max_rewinds` times in a '
            'phase.'),
    'max_rewinds': Field(
        default=3, kind=Whole(0, 100), **_ANY_TIME,
        doc='How often `on_nan` = `rewind` returns to a checkpoint in a phase before it stops.'),
    'profile': Field(
        default=False, kind=Flag(), **_ANY_TIME,
        doc='Write a profile of a few steps of every phase for TensorBoard, at the beginning and '
            'then once an hour.'),
    'log_every_steps': Field(
        default=50, kind=_COUNT, **_ANY_TIME,
        doc='Steps between two progress lines. The loss is checked for NaN at the same steps.'),
    'dry_run': Field(
        default=False, kind=Flag(), **_ANY_TIME,
        doc='Estimate the time and memory of each phase from a few steps on made images, and train '
            'nothing. The data set need not be prepared, and nothing is written.'),
    'dry_run_seconds': Field(
        default=120, kind=Whole(0, 1_000_000), **_ANY_TIME,
        doc='The time after which `dry_run` measures no further step, and scales the times of the '
            'remaining steps. The first step is measured in any case, unless this is 0.'),

    'compute.steps_per_call': Field(
        default=0, kind=Whole(0, 100_000), **_ANY_TIME,
        doc='Updates in one compiled call. The run reacts to a SIGTERM and to a NaN only between '
            'two calls. 0 chooses 1 on a CPU or with a streaming loader, and otherwise all '
            'updates between two progress lines.'),
    'compute.prefetch': Field(
        default=2, kind=Whole(0, 1000), **_ANY_TIME,
        doc='Batches that the streaming loader puts on the devices before a step needs them.'),
    'compute.accumulate': Field(
        default=1, kind=_COUNT,
        doc='The number of parts into which each device divides its slice of a batch, to save '
            'memory. The parts are processed one after the other; on a CPU this saves little. It '
            'changes numbers, because batch norm and memories such as that of `crd` see one part '
            'at a time.'),
    'compute.remat': Field(
        default=False, kind=Flag(), **_ANY_TIME,
        doc='Save memory: keep only the results of convolutions and matrix products for the '
            'backward pass, and compute the other activations again.'),
    'compute.fold_batch_norm': Field(
        default=True, kind=Flag(), **_ROUNDING,
        doc="Fold the batch norms of the frozen teacher into its convolutions, to save time, if it "
            "is one of kdih's models."),
    'compute.teacher_dtype': Field(
        default='', kind=Choice(('', *choices.DTYPES)), averaged=_teacher_dtype, caches=CACHES,
        cached=_teacher_dtype,
        doc='The type in which the frozen teacher computes; `bfloat16` changes its logits. Empty: '
            'as `dtype`.'),
    'compute.mean_soft_label': Field(
        default=True, kind=Flag(), caches=(OUTPUTS,), **_ROUNDING,
        doc='Compute the loss of a cohort from its mean soft label if the members share a '
            'temperature, to save time.'),
    'compute.cache_members': Field(
        default=False, kind=Flag(), **_ROUNDING,
        doc='Cache the logits of all members for `dih`. One such table serves every temperature '
            'and every weighting of the members. By default the cache holds the mean soft label, '
            'which is smaller, but differs between temperatures and weightings.'),
    'compute.cache': Field(
        default='none', kind=_CACHE, averaged=_recipe, caches=CACHES,
        student_only=_heads_use_no_cache,
        doc='Compute the outputs of the teachers once and cache them. `none` caches nothing, '
            '`all_views` caches every view of an image that the augmentation can make, and '
            '`views:N` caches N fixed views of each image. With `views:N` students see only these '
            'views, which is another recipe.'),
    'compute.cache_taps': Field(
        default=False, kind=Flag(),
        doc='Also cache the features at the taps, and train the heads from this cache. Features '
            'are large, and usually only `views:N` fits. The heads then see only these views.'),
    'compute.cache_place': Field(
        default='device', kind=Choice(choices.CACHE_PLACES), **_ANY_TIME,
        doc='The place of the cache: the memory of the devices, the memory of the host, or a disk, '
            'in the workdir of the teacher.'),
    'compute.keep_freed_memory': Field(
        default=True, kind=Flag(), **_ANY_TIME,
        doc='On a CPU, keep the memory that a step has freed for the next step, to save time.'),
    'compute.compilation_cache': Field(
        default='', kind=Text(), **_ANY_TIME,
        doc='The folder in which compiled programs are kept for the next start. Empty: '
            '~/.cache/kdih/compiled.'),

    'distributed.coordinator': Field(
        default='', kind=Text(), **_ANY_TIME,
        doc='HOST:PORT of process 0 if several processes run as one. Empty: see `detect`.'),
    'distributed.num_processes': Field(
        default=1, kind=Whole(1, 100_000), **_ANY_TIME, doc='The number of processes.'),
    'distributed.process_id': Field(
        default=0, kind=Whole(0, 100_000), **_ANY_TIME,
        doc='The number of this process, counted from 0.'),
    'distributed.detect': Field(
        default=True, kind=Flag(), **_ANY_TIME,
        doc='Join the other processes of the Slurm job or TPU slice that this process belongs to.'),
    'distributed.timeout': Field(
        default=300, kind=_COUNT, **_ANY_TIME,
        doc='Seconds to wait for the other processes at the start.'),

    'data.name': Field(
        default='digits', kind=NAME, caches=CACHES, described=True,
        doc='A data set of TFDS, such as `cifar100`, `emnist/letters` or `imagenet2012/5.1.0`, or '
            'of kdih: `digits`, `tiny_imagenet`, `image_folder`.'),
    'data.folder': Field(
        default='', kind=Text(), **_ANY_TIME,
        doc='The folder of the images of `image_folder`, FOLDER/SPLIT/CLASS/*.jpg (.jpeg, .png). '
            'The images are read where they are. The folder may be moved, because the content of '
            'its images is compared.'),
    'data.data_dir': Field(
        default='', kind=Text(), **_ANY_TIME,
        doc='The folder in which TFDS keeps its data sets. Empty: ~/tensorflow_datasets. A data '
            'set in an object store, such as gs://bucket/tfds, is copied to the local disk.'),
    'data.train_split': Field(
        default='train', kind=NAME, caches=CACHES, described=True,
        doc='The TFDS split to train and to validate with, for instance a slice: `train[:90%]`.'),
    'data.test_split': Field(
        default='test', kind=NAME, described=True,
        doc='The TFDS split to test with. It is read only at the end of a phase, and must share no '
            'image with `train_split`.'),
    'data.image_key': Field(
        default='image', kind=NAME, caches=CACHES, described=True,
        doc='The name of the TFDS feature that holds the image.'),
    'data.label_key': Field(
        default='label', kind=NAME, caches=CACHES, described=True,
        doc='The name of the TFDS feature that holds the class.'),
    'data.image_size': Field(
        default=0, kind=Whole(0, 16384), caches=CACHES,
        doc='The side in pixels of a square. Every image is resized, bilinearly, so that it covers '
            'the square, and cropped at the centre. 0 keeps the size of the images.'),
    'data.mean': Field(
        default=(0.5,), kind=Many(Number(-10, 10), 1), caches=CACHES, described=True,
        doc='The mean that is subtracted from images scaled to [0, 1]: one number for each '
            'channel, or one for all channels.'),
    'data.std': Field(
        default=(0.5,), kind=Many(Number(1e-6, 10), 1), caches=CACHES, described=True,
        doc='The standard deviation that images are divided by after the mean is subtracted: one '
            'number for each channel, or one for all channels.'),
    'data.padding': Field(
        default=4, kind=Whole(0, 1024), caches=CACHES,
        doc='Augmentation: pad each side by this number of pixels, then crop the original size at '
            'a random position.'),
    'data.padding_mode': Field(
        default='zeros', kind=Choice(choices.PADDING_MODES), caches=CACHES,
        doc='The content of the padding: zeros, or the image reflected at its edges.'),
    'data.flip': Field(
        default=True, kind=Flag(), caches=CACHES,
        doc='Augmentation: mirror an image horizontally with probability 1/2.'),
    'data.validation_fraction': Field(
        default=0.1, kind=Number(0, 1, open_high=True), caches=CACHES, described=True,
        doc='The fraction of the train split that is used to choose checkpoints and not to train. '
            'With 0 the last checkpoint is chosen.'),
    'data.validation_seed': Field(
        default=0, kind=Whole(0, 2**63 - 1), caches=CACHES, described=True,
        doc='The seed by which the validation images are chosen.'),
    'data.loader': Field(
        default='memory', kind=Choice(choices.LOADERS), **_ROUNDING,
        doc='`memory` keeps the data set on the devices; `streaming` reads it with tf.data.'),
    'data.order_seed': Field(
        default=-1, kind=Whole(-1, 2**32 - 1), caches=CACHES, cached=_seed_of_views,
        doc='The seed of order and augmentation. Runs with different values of `seed` and the same '
            '`order_seed` see the same batches. -1 uses `seed`.'),
    'data.eval_global_batch_size': Field(
        default=500, kind=Whole(1, 10_000_000), **_ROUNDING,
        doc='Images in one evaluation step, over all devices.'),

    'teacher.name': Field(
        default='resnet110', kind=NAME, averaged=BY_TEACHER, varies=True,
        doc='A model of kdih.models, or the import path of your own linen module: '
            '`my_pkg.nets:MyNet`.'),
    'teacher.kwargs': Field(
        default={}, kind=Group(), averaged=BY_TEACHER, varies=True,
        doc='Further arguments of the module.'),
    'teacher.variables': Field(
        default='', kind=Text(), resume=_is_set, averaged=BY_TEACHER,
        doc='The `variables` folder of a trained teacher to use, which may be moved. Empty: train '
            'a teacher.'),
    **_training('teacher.train', averaged=BY_TEACHER),

    'heads.kind': Field(
        default='flatten', kind=Choice(choices.HEAD_KINDS),
        doc='A head is one Dense layer. With `flatten`, as in the paper, it reads the flattened '
            'feature; with `gap` it reads the global average of the feature.'),
    'heads.taps': Field(
        default=(), kind=Many(NAME, distinct=True), caches=(TAPS,),
        doc='The taps of the teacher that carry a head, in cohort order. (): every tap that the '
            'model sows.'),
    'heads.variables': Field(
        default='', kind=Text(), resume=_is_set, averaged=FREE,
        doc='The `variables` folder of heads that were trained on the same teacher, which may be '
            'moved. Empty: train heads.'),
    **_training('heads.train'),

    'student.name': Field(
        default='resnet8', kind=NAME, student_only=True, varies=True,
        doc='A model of kdih.models, or the import path of your own linen module.'),
    'student.kwargs': Field(
        default={}, kind=Group(), student_only=True, varies=True,
        doc='Further arguments of the module.'),
    'student.methods': Field(
        default=('ce', 'kd', 'dih'), kind=Many(NAME, 1, distinct=True), student_only=True,
        **_ANY_TIME,
        doc='The methods to train students by: names of entries of `methods`. Each is a phase '
            'student/NAME.'),
    'student.taps': Field(
        default=(), kind=Many(NAME, distinct=True), student_only=True,
        doc='The taps of the student that feature methods compare with `teacher_taps`, in pairs '
            'from the first on. (): every tap that the model sows.'),
    'student.teacher_taps': Field(
        default=(), kind=Many(NAME, distinct=True), student_only=True,
        doc='The taps of the teacher that feature methods compare with `taps`. (): every tap that '
            'the model sows.'),
    **_training('student.train', student_only=True),
    **_training('student.prepare', student_only=True),

    'sweep.pairs': Field(
        default=(), kind=Many(NAME, distinct=True), **_ANY_TIME,
        doc='The pairs to train, each written TEACHER:STUDENT. (): `teacher.name` with each of '
            '`students`.'),
    'sweep.students': Field(
        default=(), kind=Many(NAME, distinct=True), **_ANY_TIME,
        doc='The students to train. (): `student.name`.'),
    'sweep.methods': Field(
        default=(), kind=Many(NAME, distinct=True), **_ANY_TIME,
        doc='The methods to train by: names of entries of `methods`. (): `student.methods`.'),
    'sweep.seeds': Field(
        default=(30, 50, 67), kind=Many(_SEED, 1, distinct=True), **_ANY_TIME,
        doc='The seeds of the students. Teacher and heads are trained once, with `seed`.'),
    'sweep.alphas': Field(
        default=(), kind=Many(Number(0, 1), distinct=True), **_ANY_TIME,
        doc='Values of `alpha`: every method that has this option is also trained with each of '
            'them. (): only with its own value.'),
    'sweep.learning_rates': Field(
        default=(), kind=Many(RATE, distinct=True), **_ANY_TIME,
        doc='Learning rates: every method is also trained at each of them. (): only at its own.'),
    'sweep.together': Field(
        default=False, kind=Flag(), **_ANY_TIME,
        doc='Train the students of all seeds and of all variants of a method together, as one '
            'program in which they share every batch. Several seeds need `data.order_seed`.'),
    'sweep.together_by': Field(
        default='auto', kind=Choice(choices.TOGETHER_BY), **_ANY_TIME,
        doc='The way to train students together: by `jax.vmap`, or one after the other in an '
            '`unrolled` loop within the program. `auto` chooses the faster one for the device.'),
}
# Fields that earlier versions wrote to manifests. They changed no number.
RETIRED = ('sweep.dry_run',)
TRAININGS = ('teacher.train', 'heads.train', 'student.train', 'student.prepare')


def of_recipe(recipe: str) -> dict[str, Any]:
  """Returns the defaults of a recipe for all fields but those of `methods`, as a flat config."""
  values = {name: field.default for name, field in FIELDS.items()}
  trained = recipes.get(recipe)['train']
  return values | {f'{group}.{name}': value for group in TRAININGS
                   for name, value in {**trained, **_BY_ANY_RECIPE.get(group, {})}.items()}


def base(recipe: str = 'paper') -> 'ml_collections.ConfigDict':
  """Returns a config with the defaults of a recipe, one of `recipes.RECIPES`.

  Raises:
    ConfigError: there is no such recipe.
  """
  import ml_collections  # Imported here, because programs with a `plain` config do not have it.

  config = ml_collections.ConfigDict(nested(of_recipe(recipe)))
  for role in ('teacher', 'student'):  # A `type_safe` group would fix the type of an option.
    config[role].kwargs = ml_collections.ConfigDict(type_safe=False)
  config.methods = ml_collections.ConfigDict(method_presets.methods(recipe), type_safe=False)
  return config


def defaults() -> dict[str, Any]:
  """Returns the defaults of all fields but those of `methods`, as a flat config.

  A run of an earlier version has the default of every field that this version did not have.
  """
  return dict(flat({name: list(field.default) if isinstance(field.default, tuple) else field.default
                    for name, field in FIELDS.items()}))
