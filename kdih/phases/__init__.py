"""The DIH paper (arXiv 2103.00497) in four files: `teacher`, `heads`, `student` and `pipeline`.

The first three are the phases, with the loss of each; `pipeline` runs them in order. `problem`
constructs the training problem of a phase, `networks` builds the models, and `experiment` holds
what the phases of a run share. `identity`, `computation` and `resume` decide whether a run can
resume; `cache_plan` decides what a run caches; `exported_variables` saves and loads variables;
`memory`, `step_cost`, `blank` and `dry_run` estimate memory and time before a run trains.
`kdih.training.step` turns a loss into an update.
"""
