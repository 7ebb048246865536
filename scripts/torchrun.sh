#!/usr/bin/env bash
# Trains a recipe by torchrun, a process per GPU:
#   scripts/torchrun.sh RECIPE [OVERRIDE...]            on all GPUs of this machine
#   NPROC=2 scripts/torchrun.sh RECIPE [OVERRIDE...]    on two of them, or, without a GPU, two processes on the CPU
# On several nodes the same command on each, with a port of one of them and a name for the run:
#   NNODES=2 RDZV_ENDPOINT=HOST:29400 RDZV_ID=NAME scripts/torchrun.sh RECIPE [OVERRIDE...]
# MAX_RESTARTS=3 starts all processes again, so often, when one fails; the run goes on from its last checkpoint, also when
# a node was lost and its command is given again. HARDWARE=FILE takes another file than those in configs/hardware/, and
# LOCAL_ADDR=ADDRESS is what the others reach this node by, if not its name.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)

fail() {
  echo "scripts/torchrun.sh: $1" >&2
  exit 2
}
recipe=${1:-}
[[ -n $recipe && $recipe != -* ]] || fail "the recipe is missing: scripts/torchrun.sh RECIPE [OVERRIDE...]"
shift
python=$here/.venv/bin/python
[[ -x $python ]] || python=python3

nodes=${NNODES:-1}
if ((nodes == 1)); then
  meeting=(--standalone)
else
  [[ -n ${RDZV_ENDPOINT:-} && -n ${RDZV_ID:-} ]] || fail "NNODES=$nodes needs RDZV_ENDPOINT=HOST:PORT and RDZV_ID=NAME, the same on each node"
  meeting=(--nnodes "$nodes" --rdzv-backend c10d --rdzv-endpoint "$RDZV_ENDPOINT" --rdzv-id "$RDZV_ID")
  [[ -z ${LOCAL_ADDR:-} ]] || meeting+=(--local-addr "$LOCAL_ADDR")
  # a node that takes a lost one's place would wait in vain for an address that the others have kept (torch 2.15)
  export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
fi

if [[ -z ${NPROC:-} || -z ${HARDWARE:-} ]]; then
  gpus=$("$python" -c 'import torch; print(torch.cuda.device_count())')
  if ((gpus)); then hardware=ddp; else hardware=cpu; fi
  NPROC=${NPROC:-$((gpus ? gpus : 1))} HARDWARE=${HARDWARE:-$here/configs/hardware/$hardware.yaml}
fi
threads=$(($(nproc) / NPROC))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads ? threads : 1))}

exec "$python" "$here/scripts/torchrun.py" "${meeting[@]}" --nproc-per-node "$NPROC" --max-restarts "${MAX_RESTARTS:-0}" \
  -m cifar_resnets fit -c "$recipe" -c "$HARDWARE" \
  --trainer.strategy ddp --trainer.num_nodes "$nodes" --trainer.devices "$NPROC" "$@"
