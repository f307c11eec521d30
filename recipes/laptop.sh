#!/bin/sh
# The steps of vfhq_8gpu.sh on a laptop, from the packaged weights and encoder: your own videos, phase one, phase two, scores.
#   recipes/laptop.sh CLIPS OUT [MINUTES]
# CLIPS: folder of videos; MINUTES: for phase one, 60 by default; phase two gets a quarter of that. A GPU is used where there
# is one. Started again it goes on where it stopped. For a processor without the packaged weights: train_cpu.sh.
set -eu
clips=$1 out=$2 minutes=${3:-60}
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_TOP_PAD_=268435456

export3d prepare "$clips" -o "$out/data"
export3d train "$out/data" -o "$out/one" --from-pretrained base --cache "$out/cache" \
    --set loop.max_minutes="$minutes"
export3d refine "$out/data" -o "$out/two" --from-pretrained "$out/one/weights.safetensors" --cache "$out/cache" \
    --recipe fine-tune --set loop.max_minutes="$((minutes / 4 + 1))"
export3d evaluate same "$out/data" --split val -o "$out/evaluation" --weights "$out/two/weights.safetensors"
