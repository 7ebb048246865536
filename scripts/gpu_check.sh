#!/usr/bin/env bash
# Measures the project on a machine with a GPU, in at most nine minutes, and writes OUTPUT/gpu_check.md:
#   scripts/gpu_check.sh --images DIR                    # DIR/train/<class>/*, DIR/test/<class>/*: CIFAR-10
#   scripts/gpu_check.sh data trainer                    # some parts; without --images those that need none
#   scripts/gpu_check.sh --accelerator cpu --tiny ...    # a try without a GPU, whose figures say nothing
# --output DIR is gpu_check, if not given. A part whose OUTPUT/<part>.md is there is not run again: after a break, the
# same command goes on. PYTHON=/path/to/python chooses another one than that of .venv. Status 1 if a part failed.
# Needs what requirements.txt names, pytest, and a C++ compiler for torch.compile.
set -euo pipefail
cd "$(dirname "$0")/.."
accelerator=gpu tiny='' images='' output=gpu_check parts=()
while (($#)); do
  case $1 in
    --accelerator) accelerator=$2; shift 2 ;;
    --images) images=$(realpath "$2"); shift 2 ;;
    --output) output=$2; shift 2 ;;
    --tiny) tiny=yes; shift ;;
    tests | data | trainer | networks | sharing | speed94 | resnet18) parts+=("$1"); shift ;;
    *) echo "scripts/gpu_check.sh: $1 is not allowed, see the first lines of the script" >&2; exit 2 ;;
  esac
done
# seconds of each part, after which it is ended
declare -A limits=([tests]=90 [data]=40 [trainer]=110 [networks]=110 [sharing]=40 [speed94]=100 [resnet18]=50)
((${#parts[@]})) || parts=(tests data trainer networks sharing ${images:+speed94 resnet18})
python=${PYTHON:-$PWD/.venv/bin/python}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$output"
output=$(realpath "$output")
precision=bf16-mixed
[[ $accelerator == cpu ]] && precision=32-true

benchmark() { "$python" scripts/benchmark.py "$@"; }

# with --tiny, the arguments after it instead of those before it: or FULL... -- TINY...
choose() {
  chosen=()
  local seen=''
  for word in "$@"; do
    if [[ $word == -- ]]; then seen=yes; continue; fi
    [[ $tiny == "$seen" ]] && chosen+=("$word")
  done
  return 0
}

part_tests() {
  # shellcheck disable=SC2046  # names without blanks
  "$python" -m pytest -q -m gpu -p no:cacheprovider $(grep -rl needs_gpu tests --include='test_*.py') |
    tee /dev/stderr | tail -n 1
}

part_data() {
  choose -- --num-images 600 --workers 0 --rounds 1 --seconds 0.05
  benchmark data --accelerator "$accelerator" "${chosen[@]}"
}

part_trainer() {
  choose --network cifar_resnet18 --batch-size 512 --steps 200 --compile default -- --batch-size 4 --steps 2 --rounds 1
  benchmark trainer --accelerator "$accelerator" --precision $precision "${chosen[@]}"
  choose --steps 500 --compile reduce-overhead -- --batch-size 4 --steps 2 --rounds 1
  echo
  benchmark trainer --accelerator "$accelerator" --precision $precision --fast "${chosen[@]}"
}

part_networks() {
  choose --networks cifar_resnet20 cifar_resnet18 cifar_speednet --batch-sizes 512 1024 --seconds 2 -- \
    --networks cifar_resnet20 --batch-sizes 4 --seconds 0.1 --compile off
  benchmark networks --accelerator "$accelerator" --precision $precision "${chosen[@]}"
}

# ResNet-20's images/s alone, then in two processes at once
part_sharing() {
  choose --batch-sizes 128 --seconds 4 -- --batch-sizes 4 --seconds 0.1
  local folder
  folder=$(mktemp -d)
  local command=(benchmark networks --networks cifar_resnet20 --compile off --accelerator "$accelerator" "${chosen[@]}")
  "${command[@]}" --json "$folder/alone.json" >&2
  "${command[@]}" --json "$folder/first.json" >&2 &
  "${command[@]}" --json "$folder/second.json" >&2
  wait $!
  echo "| ResNet-20, eager | images/s |"
  echo "|---|---:|"
  for name in alone first second; do
    echo "| $name | $("$python" -c "
import json, sys
print(format(json.load(open(sys.argv[1]))['rows'][0]['eager']['images_per_second'], ',.0f'))" "$folder/$name.json") |"
  done
  rm -r "$folder"
}

part_speed94() {
  choose --runs 5 -- --runs 1
  local more=(--)
  [[ $tiny ]] && more+=(--data.batch_size 8 --trainer.max_epochs 1 --model.compile null --explain null
    --model.network_args "{widths: [8, 8], depth: 2}")
  benchmark time_to_accuracy -c configs/recipes/speed94.yaml -c configs/hardware/$accelerator.yaml \
    --images "$images" "${chosen[@]}" "${more[@]}"
}

part_resnet18() {
  choose -- --data.batch_size 8 --trainer.max_epochs 1 --trainer.limit_train_batches 3 --explain null \
    --model.network_args "{widths: [8, 8, 8, 8], stem_width: 8}"
  "$python" -m cifar_resnets fit -c configs/recipes/resnet18_onecycle.yaml -c configs/hardware/$accelerator.yaml \
    --data ImageFolder --data.root "$images" --trainer.default_root_dir "$output/logs" "${chosen[@]}" >&2
  "$python" -m cifar_resnets collect "$output/logs" --format markdown
}

failed=()
for part in "${parts[@]}"; do
  [[ -f $output/$part.md ]] && continue
  if [[ -z $images && $part =~ ^(speed94|resnet18)$ ]]; then
    echo "scripts/gpu_check.sh: $part needs --images" >&2
    exit 2
  fi
  limit=${limits[$part]}
  [[ $tiny ]] && limit=600  # a busy machine may be slow
  echo "$part: at most $limit s" >&2
  start=$SECONDS
  # in a shell of its own, whose whole process group the time limit ends
  export -f benchmark choose "part_$part"
  export python accelerator precision tiny images output
  if timeout --kill-after 5 "$limit" bash -euo pipefail -c "chosen=(); part_$part" \
    >"$output/$part.partial" 2>"$output/$part.log"; then
    printf '\n%s took %s s.\n' "$part" $((SECONDS - start)) >>"$output/$part.partial"
    mv "$output/$part.partial" "$output/$part.md"
  else
    failed+=("$part")
    echo "$part failed, see $output/$part.log:" >&2
    tail -n 5 "$output/$part.log" >&2
  fi
done

{
  echo "# Measured by scripts/gpu_check.sh on $(date +%F)"
  for part in tests data trainer networks sharing speed94 resnet18; do
    [[ -f $output/$part.md ]] && printf '\n## %s\n\n%s\n' "$part" "$(<"$output/$part.md")"
  done
} >"$output/gpu_check.md"
echo "$output/gpu_check.md"
((${#failed[@]} == 0)) || exit 1
