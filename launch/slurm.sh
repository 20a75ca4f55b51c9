#!/usr/bin/env bash
# Runs a command on a Slurm cluster until it is done, through time limits and pre-emption.
#
#   sbatch launch/slurm.sh python -m kdih.main --config=configs/cifar100.py --workdir=runs/cifar100
#
# Edit the #SBATCH lines; those that are given to sbatch beat them. Submit in the folder in which
# the command is to run, with its environment active. All nodes must see that folder and --workdir.
#
# One task for each GPU, so that --ntasks-per-node and --gpus-per-node are the same number: of
# several tasks JAX gives each the one GPU that has its number on its node. Each must see all GPUs
# of the node, so use neither --gpus-per-task nor --gpu-bind. One task alone takes all GPUs it sees.
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

# srun returns the largest exit code of its tasks; 1 and 2 have to be larger than 75.
# shellcheck disable=SC2016
readonly TASK='
trap : TERM
"$@"
code=$?
case $code in 1 | 2) code=$((code + 100)) ;; esac
exit "$code"'

# Tasks that still save must not be killed because one has ended.
run() {
  local code=0
  srun --kill-on-bad-exit=0 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
    bash -c "$TASK" kdih "$@" || code=$?
  case $code in 101 | 102) code=$((code - 100)) ;; esac
  return "$code"
}

requeue() {
  if ((${SLURM_RESTART_COUNT:-0} >= RESTARTS)); then
    say "was queued again $SLURM_RESTART_COUNT times, and stops here; submit it again to go on"
    exit 75
  fi
  say 'asked to stop, and saved; queued again'
  scontrol requeue "$SLURM_JOB_ID" || exit 75
}

main() {
  if (($# == 0)) || [[ -z ${SLURM_JOB_ID:-} ]]; then
    echo 'usage: sbatch launch/slurm.sh COMMAND [ARGUMENT...]' >&2
    exit 2
  fi
  trap : TERM  # It is for the tasks.
  local code=0
  run "$@" || code=$?
  if ((code == 75)); then requeue; exit; fi
  say "ended with exit code $code"
  exit "$code"
}

main "$@"
