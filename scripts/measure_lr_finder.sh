#!/usr/bin/env bash
# Measures the learning-rate finder on an image folder, DIR/train/<class>/* and DIR/test/<class>/*:
#   scripts/measure_lr_finder.sh spread DIR   what it suggests for four networks, with five seeds each
#   scripts/measure_lr_finder.sh grid DIR     the rate that it finds against five that are typed in, trained equally
# NUM_TRAIN=45000 scripts/measure_lr_finder.sh grid DIR   trains on so many images; 5,000 if not given
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:-} images=${2:?"give spread or grid, and an image folder"}
recipe=(-c configs/recipes/resnet20_onecycle.yaml -c configs/hardware/cpu.yaml --data ImageFolder --data.root "$images")
run() { .venv/bin/cifar-resnets "$@"; }

case $what in
  spread)
    for network in cifar_resnet20 cifar_resnet56 cifar_resnet18 cifar_custom_resnet; do
      for seed in 0 1 2 3 4; do
        echo "== $network, seed $seed"
        run find-lr "${recipe[@]}" --model.network "$network" --seed_everything "$seed" --num_steps 100
      done
    done
    ;;
  grid)
    for lr in 0.02 0.063 0.2 0.63 2 found; do
      typed=(--model.lr "$lr" --trainer.callbacks null)
      [[ $lr != found ]] || typed=()
      echo "== learning rate $lr"
      run fit "${recipe[@]}" --data.num_train "${NUM_TRAIN:-5000}" "${typed[@]}" --name "grid_$lr" | grep -E '^(learning|accuracy)'
    done
    ;;
  *)
    echo "scripts/measure_lr_finder.sh: $what is not allowed, give spread or grid" >&2
    exit 2
    ;;
esac
