"""Every field of the config, with its default.

A config file defines `get_config(arg)`: it takes `base()`, sets what differs, and returns it.
Importing this module must stay light: it runs before the settings are known to be right."""
import ml_collections

from kdih.config import method_presets, recipes


def base(recipe: str = 'paper') -> ml_collections.ConfigDict:
  """Every field of a config, with the defaults of a `recipe` (one of `choices.RECIPES`)."""
  config = ml_collections.ConfigDict()
  # Seeds initialisation, order and augmentation; every method starts from the same student.
  config.seed = 30
  # The phases to run, in this order; a finished one is not run again.
  config.phases = ('teacher', 'heads', 'student')
  # The numbers that models compute in: 'float32' or 'bfloat16'. Parameters stay float32.
  config.dtype = 'float32'
  # Batch-norm statistics over all devices (the same numbers on any number of them).
  config.sync_batch_norm = True
  # Bit-reproducible kernels on a GPU, where they cost speed. CPUs and TPUs always are.
  config.deterministic = True
  # What a loss that is not finite does: 'stop' ends the run; 'rewind' goes back to the last
  # checkpoint with half the learning rate, at most `max_rewinds` times a phase.
  config.on_nan = 'stop'
  config.max_rewinds = 3
  # Write a profile of a few steps in every phase, once an hour, for TensorBoard.
  config.profile = False
  # Steps between two progress lines; the loss is checked for NaN at each.
  config.log_every_steps = 50
  config.compute = _compute()
  config.distributed = _distributed()
  config.data = _data()
  config.teacher = _teacher(recipe)
  config.heads = _heads(recipe)
  config.student = _student(recipe)
  config.methods = ml_collections.ConfigDict(method_presets.methods(recipe))
  config.sweep = _sweep()
  return config


def _compute() -> ml_collections.ConfigDict:
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


def _distributed() -> ml_collections.ConfigDict:
  """Several processes that run as one; the first three fields have a short flag each."""
  distributed = ml_collections.ConfigDict()
  # HOST:PORT of process 0; '' joins nobody, unless it is detected who there is.
  distributed.coordinator = ''
  # How many processes there are, and which of them this is, from 0.
  distributed.num_processes = 1
  distributed.process_id = 0
  # Join the processes of the Slurm job or TPU slice that this one is part of.
  distributed.detect = True
  # Seconds to wait for the others at the start.
  distributed.timeout = 300
  return distributed


def _data() -> ml_collections.ConfigDict:
  data = ml_collections.ConfigDict()
  # A TFDS name, such as 'cifar100' or 'imagenet2012/5.1.0', or one of kdih's own: 'digits',
  # 'tiny_imagenet', 'image_folder'.
  data.name = 'digits'
  # The images of 'image_folder', in <folder>/SPLIT/CLASS/*.jpg (.jpeg, .png).
  data.folder = ''
  # Where TFDS keeps its data sets; '' is TFDS's default (~/tensorflow_datasets).
  data.data_dir = ''
  # TFDS splits, slices included: 'train[:90%]'. The test split is read once, at the end.
  data.train_split = 'train'
  data.test_split = 'test'
  # The features that hold the image and the class.
  data.image_key = 'image'
  data.label_key = 'label'
  # Side in pixels that every image is resized to; 0 keeps them as they are.
  data.image_size = 0
  # Per channel, of images scaled to [0, 1]; one number serves every channel.
  data.mean = (0.5,)
  data.std = (0.5,)
  # Augmentation: pad by so many pixels ('zeros' or 'reflect'), crop back at random, flip.
  data.padding = 4
  data.padding_mode = 'zeros'
  data.flip = True
  # Cut from the train split, by this seed, to choose checkpoints. 0: the last one is chosen.
  data.validation_fraction = 0.1
  data.validation_seed = 0
  # 'memory' keeps the split on the device; 'streaming' reads it with tf.data.
  data.loader = 'memory'
  # Seeds order and augmentation instead of `seed`, so that runs of several seeds see the same
  # batches; -1 is `seed`.
  data.order_seed = -1
  # Images in one evaluation step, over all devices.
  data.eval_global_batch_size = 500
  return data


def _teacher(recipe: str) -> ml_collections.ConfigDict:
  teacher = ml_collections.ConfigDict()
  # A name of kdih.models, or the import path of your own linen module: 'my_pkg.nets:MyNet'.
  teacher.name = 'resnet110'
  # Further arguments of the module.
  teacher.kwargs = ml_collections.ConfigDict()
  # A `variables` folder of an earlier run to start from; '' trains the teacher.
  teacher.variables = ''
  teacher.train = recipes.train(recipe)
  return teacher


def _heads(recipe: str) -> ml_collections.ConfigDict:
  heads = ml_collections.ConfigDict()
  # 'flatten' is the paper's: all of the feature into one Dense. 'gap' pools it first.
  heads.kind = 'flatten'
  # The teacher's taps that get a head, in this order; () is every tap that it sows.
  heads.taps = ()
  # A `variables` folder of heads trained on the same teacher; '' trains them.
  heads.variables = ''
  heads.train = recipes.train(recipe)
  return heads


def _student(recipe: str) -> ml_collections.ConfigDict:
  student = ml_collections.ConfigDict()
  # As for the teacher.
  student.name = 'resnet8'
  student.kwargs = ml_collections.ConfigDict()
  # How the student is taught: names of entries in `methods`, each trained as student/<name>/.
  student.methods = ('ce', 'kd', 'dih')
  # The taps that feature methods compare, pairwise from the first: of the student and of the
  # teacher. () is every tap that the model sows.
  student.taps = ()
  student.teacher_taps = ()
  student.train = recipes.train(recipe)
  # How methods train that prepare something first: fitnets, ab, ft, tofd.
  student.prepare = recipes.train(recipe)
  student.prepare.update(length=40.0, milestones=(20.0, 30.0), schedule='constant')
  return student


def _sweep() -> ml_collections.ConfigDict:
  """What `python -m kdih.sweep` runs; each field has a short flag: `--seeds=30,50`."""
  sweep = ml_collections.ConfigDict()
  # 'teacher:student', by name; () is every one of `students` with the config's teacher.
  sweep.pairs = ()
  # Names of students; () is the config's.
  sweep.students = ()
  # Names of entries in `methods`; () is `student.methods`.
  sweep.methods = ()
  # Seeds of the students; teacher and heads are trained once, with the config's seed.
  sweep.seeds = (30, 50, 67)
  # Every method also with these in the place of its `alpha`, and at these learning rates; () is
  # its own.
  sweep.alphas = ()
  sweep.learning_rates = ()
  # Train the seeds of a student by one method and its variants as one program, which share every
  # batch; seeds need `data.order_seed`. By 'vmap', or 'unrolled'; 'auto' chooses for the device.
  sweep.together = False
  sweep.together_by = 'auto'
  # Say what it would cost, and train nothing.
  sweep.dry_run = False
  return sweep
