#!/usr/bin/env bash
# Runs the recipes of docs/results.md on CIFAR-10, several at a time, and goes on with runs that were interrupted:
#   nice scripts/results.sh --images DIR                       # every row, two runs at a time, a core each
#   scripts/results.sh --images DIR --hardware gpu --jobs 12 resnet20_onecycle speed94
#   scripts/results.sh --list                                  # the rows, with their seeds and arguments
#   scripts/results.sh --images DIR speed94 -- --trainer.max_epochs 2    # more arguments of `fit`
# DIR has train/<class>/* and test/<class>/*. Runs are written to --logs DIR (results if not given), what they print
# beside them. A run whose test.json is there is not run again.
set -euo pipefail
cd "$(dirname "$0")/.."
images='' hardware=cpu jobs=2 logs=results list='' names=() extra=''
while (($#)); do
  case $1 in
    --images) images=$(realpath "$2"); shift 2 ;;
    --hardware) hardware=$2; shift 2 ;;
    --jobs) jobs=$2; shift 2 ;;
    --logs) logs=$2; shift 2 ;;
    --list) list=yes; shift ;;
    --) shift; extra=$*; break ;;
    -*) echo "scripts/results.sh: $1 is not allowed, see the first lines of the script" >&2; exit 2 ;;
    *) names+=("$1"); shift ;;
  esac
done

# name; number of seeds; recipe; more arguments of `fit`
rows() {
  local epochs network shortcut
  for epochs in 8 9 10 11; do
    echo "speed94/${epochs}_epochs; 3; speed94; --trainer.max_epochs $epochs"
  done
  echo "resnet18_onecycle; 3; resnet18_onecycle;"
  echo "resnet20_onecycle; 5; resnet20_onecycle;"
  echo "custom_resnet; 1; custom_resnet;"
  echo "custom_resnet_fixed_lr; 1; custom_resnet_fixed_lr;"
  echo "custom_resnet_fast; 3; custom_resnet_fast;"
  echo "airplane_or_bird; 5; airplane_or_bird;"
  for network in resnet56 resnet56_depthwise; do
    echo "onecycle/$network; 2; resnet20_onecycle; --model.network cifar_$network"
  done
  for network in plain20 plain56 resnet20 resnet56; do
    echo "degradation/$network; 1; degradation; --model.network cifar_$network --trainer.max_epochs 10"
  done
  echo "resnet20; 2; resnet20;"
  for shortcut in A B C constant_scaling exclusive_gating shortcut_only_gating conv1x1 dropout; do
    echo "shortcuts/$shortcut; 3; resnet20_onecycle; --model.network_args.shortcut $shortcut"
  done
}

# the runs of all rows that were asked for, one after the other: name; seed; recipe; arguments
runs() {
  local name num recipe more seed
  while IFS=';' read -r name num recipe more; do
    if ((${#names[@]})) && ! printf '%s\n' "${names[@]}" | grep -qxF -e "$name" -e "${name%%/*}"; then continue; fi
    for ((seed = 0; seed < num; seed++)); do echo "$name;$seed;$recipe;$more"; done
  done < <(rows)
}

if [[ $list ]]; then runs; exit; fi
[[ $images ]] || { echo "scripts/results.sh: give --images DIR, with train/<class>/* and test/<class>/*" >&2; exit 2; }

fit() {
  local slot=$1 name seed recipe more folder launch=()
  IFS='; ' read -r name seed recipe more <<<"$2"
  folder=$logs/seed_$seed
  [[ -z $(find "$folder/$name" -name test.json 2>/dev/null) ]] || return 0
  mkdir -p "$folder/$name"
  # on a CPU a core and a thread each: they do not disturb each other
  [[ $hardware != cpu* ]] || launch=(taskset -c $(((slot - 1) % $(nproc))) env OMP_NUM_THREADS=1)
  read -ra more <<<"$more $extra"
  "${launch[@]}" "$python" -m cifar_resnets fit -c "configs/recipes/$recipe.yaml" -c "configs/hardware/$hardware.yaml" \
    --name "$name" --seed_everything "$seed" --trainer.default_root_dir "$folder" --ckpt_path auto \
    --data ImageFolder --data.root "$images" "${more[@]}" >>"$folder/$name/output.log" 2>&1 || echo "$name, seed $seed: failed"
}

python=${PYTHON:-$PWD/.venv/bin/python}
export python images hardware logs extra
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export -f fit
mkdir -p "$logs"
runs | xargs -d '\n' -P "$jobs" --process-slot-var=SLOT -I{} bash -c 'fit $((SLOT + 1)) "$1"' run {}
"$python" -m cifar_resnets collect "$logs" --format markdown
