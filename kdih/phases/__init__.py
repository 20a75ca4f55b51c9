"""The paper in four files: `teacher`, `heads`, `student`, and `pipeline`, which runs them.

`problem` constructs what each of them trains, `experiment` is what they share, `networks` the
models. The other files keep what a run is made of (`identity`, `computation`, `resume`), what it
caches (`cache_plan`) and exports (`exported_variables`). How a step makes a loss an update is in
`kdih.training.step`.
"""
