"""Knowledge distillation via intermediate classifiers (DIH, arXiv 2103.00497), in JAX.

The packages, from the top down; each imports only those below it:

    main          python -m kdih.main: flags in, exit code out
    sweep         teachers x students x methods x seeds (python -m kdih.sweep)
    report        results to comparison, tables, pictures and page (python -m kdih.report)
    phases        the paper: teacher, heads, student, and the pipeline that runs them
    methods       one file for each way to teach the student
    cohort        the frozen teacher, the heads on its taps, their soft labels, the teacher cache
    training      the step, the loop, the optimizer, evaluation, checkpoints, metrics
    distillation  what every method is made of: lessons, losses, features
    data          image sets to batches
    models        the classifiers, and the taps that they expose
    config        every field of the config, recipes, named methods, checks
    runtime       devices, processes, signals, files, environment, flags, progress
    errors        the errors that a user can fix

Beside them, `benchmark` (python -m kdih.benchmark) measures how fast a step is.
"""

__version__ = '0.1.0'
