"""Goes on breaking kdih: `python -m tests.chaos` harms runs of every kind, and counts what happens.

A try starts a command in a fresh folder, harms its process, and runs the same command again. What
is there then is compared with what an undisturbed run leaves: variables, results, metrics, events,
tables, pictures, and the names of all files. Each try has a name, such as
`kills:sweep:event=17,half=40+300`, by which `--only` makes it again.

- A kind of run is an entry of `kinds.KINDS`: its command, and what lies in its folder before.
- A harm is a class in `harms.py` (kills, signals to stop) or `faults.py` (faults of the system).
  Its `WORDS` name it; it acts in the process, before the command or before an operation on a file,
  and tells whether it has happened. A try that was harmed less than its name says is counted apart.
  `harms.Kill.draw` and `faults.DRAWS` draw at which moment.
- Two commands at the same time are an entry of `faults.BESIDE`.
- A part is a module with `plan`, which yields names of tries, and `attempt`, which makes one; it is
  an entry of `__main__.PARTS`, and has a flag of its name that says how many tries it makes.
- What is compared is in `remains.py`.

Processes are copies of one that has imported everything, see `processes.py`: a try takes seconds.
"""
