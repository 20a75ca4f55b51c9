#!/usr/bin/env bash
# Runs a command on a Slurm cluster until it is done, through time limits and pre-emption.
#
#   sbatch launch/slurm.sh python -m kdih.main --config=configs/cifar100.py --workdir=runs/cifar100
#
# Edit the #SBATCH lines, or override them by options of sbatch. Submit the job in the folder in
# which the command is to run, with its Python environment active. All nodes must be able to read
# this folder and --workdir.
#
# Use one task for each GPU, hence the same number for --ntasks-per-node and --gpus-per-node: if
# there are several tasks, JAX gives each task the GPU whose number is the task's number on its
# node. Each task must see all GPUs of the node: use neither --gpus-per-task nor --gpu-bind. A
# single task uses all GPUs that it sees.
#SBATCH --job-name=kdih
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --output=kdih-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@60
set -euo pipefail
readonly RESTARTS=${RESTARTS:-1000}  # How often a job may be queued again.

say() {
  printf 'slurm.sh: job %s: %s\n' "$SLURM_JOB_ID" "$*" >&2
}

# srun returns the largest exit code of its tasks. 1 and 2 become 101 and 102, to be larger than 75.
# shellcheck disable=SC2016
readonly TASK='
trap : TERM
"$@"
code=$?
case $code in 1 | 2) code=$((code + 100)) ;; esac
exit "$code"'

# --kill-on-bad-exit=0: tasks that are still saving must not be killed when another one has ended.
run() {
  local code=0
  srun --kill-on-bad-exit=0 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
    bash -c "$TASK" kdih "$@" || code=$?
  case $code in 101 | 102) code=$((code - 100)) ;; esac
  return "$code"
}

requeue() {
  if ((${SLURM_RESTART_COUNT:-0} >= RESTARTS)); then
    say "was queued again $SLURM_RESTART_COUNT times, and stops here; submit it again to resume"
    exit 75
  fi
  say 'was asked to stop and has saved; queued again'
  scontrol requeue "$SLURM_JOB_ID" || exit 75
}

main() {
  if (($# == 0)) || [[ -z ${SLURM_JOB_ID:-} ]]; then
    echo 'usage: sbatch launch/slurm.sh COMMAND [ARGUMENT...]' >&2
    exit 2
  fi
  trap : TERM  # The tasks handle it.
  local code=0
  run "$@" || code=$?
  if ((code == 75)); then requeue; exit; fi
  say "ended with exit code $code"
  exit "$code"
}

main "$@"
