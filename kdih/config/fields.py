"""Every field of the config, with its default.

A config file defines `get_config(arg)`: it takes `base()`, sets what differs, and returns it.
Importing this module must stay light: it runs before the settings are known to be right.
"""
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

  # How it is computed; a field here changes no number but by rounding unless it says so.
  config.compute = ml_collections.ConfigDict()
  # Updates in one compiled call, between which nothing is looked at, a SIGTERM least of all. 0
  # chooses: 1 on a CPU or with a streaming loader, else all between two looks at the metrics.
  config.compute.steps_per_call = 0
  # Batches that the streaming loader puts on the devices ahead of the step.
  config.compute.prefetch = 2
  # Parts that each device cuts its share of a batch into, one after the other, to save memory; a
  # batch norm sees one part at a time, so that its numbers change, and a memory such as that of
  # `crd` takes in one part at a time.
  config.compute.accumulate = 1
  # Keep results of convolutions and products alone for the backward pass of what learns, which
  # computes the other activations again, to save memory.
  config.compute.remat = False
  # Fold the batch norms of the frozen teacher into its convolutions.
  config.compute.fold_batch_norm = True
  # The numbers that the frozen teacher computes in: 'float32', 'bfloat16', which changes what it
  # says, or '' for `dtype`.
  config.compute.teacher_dtype = ''
  # Teach by the cohort's mean soft label where its members share a temperature.
  config.compute.mean_soft_label = True
  # What teachers say, computed once: 'none', 'all_views' of every image under the augmentation, or
  # 'views:N', as many fixed views of each image, which are all that students see: another recipe.
  config.compute.cache = 'none'
  # Train the heads from such a cache too, of the features at the taps: all of a feature is kept, so
  # that it takes 'views:N'. With it, heads see these views alone.
  config.compute.cache_taps = False
  # Where it is kept: 'device', 'host' or 'disk' (in the workdir of the teacher).
  config.compute.cache_place = 'device'
  # On a CPU, keep the memory that a step has freed for the next one.
  config.compute.keep_freed_memory = True
  # Where compiled programs are kept for the next start; '' is ~/.cache/kdih/compiled.
  config.compute.compilation_cache = ''

  # Several processes that run as one; the first three fields have a short flag each.
  config.distributed = ml_collections.ConfigDict()
  # HOST:PORT of process 0; '' joins nobody, unless it is detected who there is.
  config.distributed.coordinator = ''
  # How many processes there are, and which of them this is, from 0.
  config.distributed.num_processes = 1
  config.distributed.process_id = 0
  # Join the processes of the Slurm job or TPU slice that this one is part of.
  config.distributed.detect = True
  # Seconds to wait for the others at the start.
  config.distributed.timeout = 300

  config.data = ml_collections.ConfigDict()
  # A TFDS name, such as 'cifar100' or 'imagenet2012/5.1.0', or one of kdih's own: 'digits',
  # 'tiny_imagenet', 'image_folder'.
  config.data.name = 'digits'
  # The images of 'image_folder', in <folder>/SPLIT/CLASS/*.jpg (.jpeg, .png).
  config.data.folder = ''
  # Where TFDS keeps its data sets; '' is TFDS's default (~/tensorflow_datasets).
  config.data.data_dir = ''
  # TFDS splits, slices included: 'train[:90%]'. The test split is read once, at the end.
  config.data.train_split = 'train'
  config.data.test_split = 'test'
  # The features that hold the image and the class.
  config.data.image_key = 'image'
  config.data.label_key = 'label'
  # Side in pixels that every image is resized to; 0 keeps them as they are.
  config.data.image_size = 0
  # Per channel, of images scaled to [0, 1]; one number serves every channel.
  config.data.mean = (0.5,)
  config.data.std = (0.5,)
  # Augmentation: pad by so many pixels ('zeros' or 'reflect'), crop back at random, flip.
  config.data.padding = 4
  config.data.padding_mode = 'zeros'
  config.data.flip = True
  # Cut from the train split, by this seed, to choose checkpoints. 0: the last one is chosen.
  config.data.validation_fraction = 0.1
  config.data.validation_seed = 0
  # 'memory' keeps the split on the device; 'streaming' reads it with tf.data.
  config.data.loader = 'memory'
  # Seeds order and augmentation instead of `seed`, so that runs of several seeds see the same
  # batches; -1 is `seed`.
  config.data.order_seed = -1
  # Images in one evaluation step, over all devices.
  config.data.eval_global_batch_size = 500

  config.teacher = ml_collections.ConfigDict()
  # A name of kdih.models, or the import path of your own linen module: 'my_pkg.nets:MyNet'.
  config.teacher.name = 'resnet110'
  # Further arguments of the module.
  config.teacher.kwargs = ml_collections.ConfigDict()
  # A `variables` folder of an earlier run to start from; '' trains the teacher.
  config.teacher.variables = ''
  config.teacher.train = recipes.train(recipe)

  config.heads = ml_collections.ConfigDict()
  # 'flatten' is the paper's: all of the feature into one Dense. 'gap' pools it first.
  config.heads.kind = 'flatten'
  # The teacher's taps that get a head, in this order; () is every tap that it sows.
  config.heads.taps = ()
  # A `variables` folder of heads trained on the same teacher; '' trains them.
  config.heads.variables = ''
  config.heads.train = recipes.train(recipe)

  config.student = ml_collections.ConfigDict()
  # As for the teacher.
  config.student.name = 'resnet8'
  config.student.kwargs = ml_collections.ConfigDict()
  # How the student is taught: names of entries in `methods`, each trained as student/<name>/.
  config.student.methods = ('ce', 'kd', 'dih')
  # The taps that feature methods compare, pairwise from the first: of the student and of the
  # teacher. () is every tap that the model sows.
  config.student.taps = ()
  config.student.teacher_taps = ()
  config.student.train = recipes.train(recipe)
  # How methods train that prepare something first: fitnets, ab, ft, tofd.
  config.student.prepare = recipes.train(recipe)
  config.student.prepare.update(length=40.0, milestones=(20.0, 30.0), schedule='constant')

  config.methods = ml_collections.ConfigDict(method_presets.methods(recipe))

  # What `python -m kdih.sweep` runs; each field has a short flag: `--seeds=30,50`.
  config.sweep = ml_collections.ConfigDict()
  # 'teacher:student', by name; () is every one of `students` with the config's teacher.
  config.sweep.pairs = ()
  # Names of students; () is the config's.
  config.sweep.students = ()
  # Names of entries in `methods`; () is `student.methods`.
  config.sweep.methods = ()
  # Seeds of the students; teacher and heads are trained once, with the config's seed.
  config.sweep.seeds = (30, 50, 67)
  # Every method also with these in the place of its `alpha`, and at these learning rates; () is
  # its own.
  config.sweep.alphas = ()
  config.sweep.learning_rates = ()
  # Train the seeds of a student by one method and its variants as one program, which share every
  # batch; seeds need `data.order_seed`. By 'vmap', or 'unrolled'; 'auto' chooses for the device.
  config.sweep.together = False
  config.sweep.together_by = 'auto'
  # Say what it would cost, and train nothing.
  config.sweep.dry_run = False
  return config
