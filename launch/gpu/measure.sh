#!/usr/bin/env bash
# Measures kdih on the GPU of this machine: the speed of a step, compared with PyTorch's, and
# whether kdih computes the right numbers there.
#   bash launch/gpu/measure.sh RESULTS [SECONDS [speed|checks]]
# It ends after SECONDS, 900 by default. `speed` is the benchmark, the most important parts first;
# `checks` is launch/gpu/checks.py; by default it does both. It needs pip install -e
# '.[cuda,torch]', and nothing else should run meanwhile. It writes log.txt and JSON files to the
# folder RESULTS. If a part fails or is late, the files of the other parts are still written. All
# programs are compiled first, in parallel; then each part is timed alone. REHEARSE=1 does the same
# with the smallest pair, on whatever device there is.
set -u
[ $# -ge 1 ] || { echo 'usage: measure.sh RESULTS [SECONDS [speed|checks]]' >&2; exit 2; }
end=$(( $(date +%s) + ${2:-900} )) what=${3:-speed checks} work=$(mktemp -d)
mkdir -p "$1" && results=$(cd "$1" && pwd) || exit
cd "$(dirname "$0")/../.." || exit
log=$results/log.txt; : > "$log"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 TF_CPP_MIN_LOG_LEVEL=3
export XLA_PYTHON_CLIENT_PREALLOCATE=false  # PyTorch and the processes that compile need memory too.
export JAX_COMPILATION_CACHE_DIR=$work/jax JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.2
export TORCHINDUCTOR_CACHE_DIR=$work/inductor TORCHINDUCTOR_FX_GRAPH_CACHE=1
large=resnet110:resnet8 small=resnet20:resnet8 many=512 some=64 half=bfloat16 runs=5 patience=170
if [ -n "${REHEARSE:-}" ]; then large=resnet8:resnet8 small=resnet8:resnet8 many=16 some=8 half=float32 runs=2 patience=400; fi
free='--xla_gpu_deterministic_ops=false'

say() { echo "[$(( end - $(date +%s) )) s left] $*" | tee -a "$log"; }

# part NAME LIMIT FLAG...: runs one benchmark alone, for LIMIT seconds or what is left, if that is
# less.
part() {
  local name=$1 limit=$2 left=$(( end - $(date +%s) )); shift 2
  [ "$left" -ge 20 ] || { say "$name: no time left"; return 1; }
  [ "$limit" -le "$left" ] || limit=$left
  timeout "$limit" python3 -m kdih.benchmark --runs=$runs "$@" --out="$results/$name.json" > "$work/$name.log" 2>&1
  local code=$?
  grep -v '^ *$' "$work/$name.log" | sed '/^bare: /,$d' >> "$log"; say "$name: exit $code"
  return $code
}

# warm NAME FLAG...: compiles in the background. PyTorch's programs have a process of their own,
# with OMP_WAIT_POLICY=passive, because its threads would wait busily for each other.
declare -A compiling compiled
warm() {
  local name=$1; shift
  timeout $patience python3 -m kdih.benchmark --runs=1 "$@" > "$work/warm_$name.log" 2>&1 &
  compiling[$name]=$!
  OMP_WAIT_POLICY=passive timeout $patience python3 -m kdih.benchmark --runs=1 "$@" --measure=bare \
    --peer=torch > "$work/warm_$name.torch.log" 2>&1 &
  compiling[$name.torch]=$!
}

# compared NAME LIMIT FLAG...: runs a part with PyTorch, or without it if PyTorch's programs failed.
compared() {
  local name=$1 limit=$2; shift 2
  # A process that was late (124) has still kept some of its programs.
  if [[ ${compiled[$name.torch]} =~ ^(0|124)$ ]] && part "$name" "$limit" "$@" --peer=torch; then return; fi
  tail -n 3 "$work/warm_$name.torch.log" >> "$log"
  part "$name" "$limit" "$@"
}

speed() {
  local resnet20_64=("--pairs=$small" "--batches=$some" "--measure=bare,loop,kd,several,cached")
  local resnet110_64=("--pairs=$large" "--batches=$some" "--measure=bare,loop,kd")
  local resnet20_512=("--pairs=$small" "--batches=$many" "--precision=$half" "--measure=bare,loop")
  local resnet110_512=("--pairs=$large" "--batches=$many" "--precision=$half" "--measure=bare,loop")
  warm resnet20_64_float32 "${resnet20_64[@]}"; warm resnet110_64_float32 "${resnet110_64[@]}"
  warm resnet20_512_bfloat16 "${resnet20_512[@]}"; warm resnet110_512_bfloat16 "${resnet110_512[@]}"
  local name
  for name in "${!compiling[@]}"; do wait "${compiling[$name]}"; compiled[$name]=$?; done
  for name in "${!compiled[@]}"; do
    if [ "${compiled[$name]}" != 0 ]; then say "compiling $name: exit ${compiled[$name]}"; fi
  done
  say compiled
  compared resnet20_64_float32 100 "${resnet20_64[@]}"
  compared resnet110_64_float32 120 "${resnet110_64[@]}"
  compared resnet20_512_bfloat16 90 "${resnet20_512[@]}"
  # The cost of bit-equal runs: XLA chooses kernels by timing all, or only those that are
  # reproducible.
  XLA_FLAGS=$free part resnet20_64_free 70 "--pairs=$small" "--batches=$some" "--measure=bare,loop"
  XLA_FLAGS="$free --xla_gpu_exclude_nondeterministic_ops=true" \
    part resnet20_64_excluding 70 "--pairs=$small" "--batches=$some" "--measure=bare,loop"
  compared resnet110_512_bfloat16 120 "${resnet110_512[@]}"
}

checks() {
  local left=$(( end - $(date +%s) ))
  [ "$left" -ge 150 ] || { say 'checks: no time left'; return; }
  timeout "$left" python3 -m launch.gpu.checks "$results/checks.json" "$(( left - 5 ))" > "$work/checks.log" 2>&1
  tee -a "$log" < "$work/checks.log"
  XLA_FLAGS="$free --xla_gpu_exclude_nondeterministic_ops=true" part resnet20_512_excluding 70 \
    "--pairs=$small" "--batches=$many" "--precision=$half" "--measure=bare,loop"
}

say "$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>&1 | head -1)"
for each in $what; do "$each"; done
rm -rf "$work"
python3 - "$results" <<'P' | tee -a "$log"
import json, pathlib, sys
for file in sorted(pathlib.Path(sys.argv[1]).glob('*.json')):
  content = json.loads(file.read_text() or '{}')
  for pair in content.get('pairs', []):
    ms = {name: round(item['median_s'] * 1e3, 3) for name, item in pair['items'].items()}
    ratios = {name: round(ratio, 2) for name, ratio in pair['ratios'].items()}
    print(file.stem, pair['teacher'], pair['student'], pair['batch'], content['precision'], ms, ratios,
          f"{pair['roofline']['fraction']:.0%} of the roofline ({pair['roofline']['bound']})")
P
