#!/bin/sh
# The model that ships, from clips to weights on a processor, on the packaged expression encoder (recipes/pretrain_cpu.sh
# makes it). Three legs: small frames; the same network at 256 pixels; then warp and super-resolution alone, with lips and
# eyes compared enlarged. The shipped weights took many more legs to find this order (docs/training-log.md), and two that no
# command has: dense motion trained without rays, and a super-resolution distilled from a wider one. This order has been run
# with few clips and minutes, not at full length.
#   recipes/train_cpu.sh CLIPS MANIFEST.csv NETWORKS FACE OUT [MINUTES]
# CLIPS: folder of videos and portraits; MANIFEST.csv: see docs/data.md, with `sitting` where portraits belong together;
# NETWORKS: folder with squeezenet1_1_features_fp32.pth and squeeze.pth (LPIPS); FACE: folder with ict_face.npz and
# mediapipe_to_ict.npz; MINUTES: of training in all, 360 by default. OUT/last/weights.safetensors is the result.
# Started again it goes on with the first leg that has no weights yet; Ctrl-C ends a leg early, with its weights.
set -eu
usage="name what to train on: recipes/train_cpu.sh CLIPS MANIFEST.csv NETWORKS FACE OUT [MINUTES]"
clips=${1:?$usage} manifest=${2:?$usage} networks=${3:?$usage} face=${4:?$usage} out=${5:?$usage} minutes=${6:-360}
test "$minutes" -ge 3 || { echo "MINUTES is $minutes; give a whole number from 3" >&2; exit 2; }
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_TOP_PAD_=268435456

export3d prepare "$clips" --manifest "$manifest" -o "$out/data"
export3d pseudo-clips "$out/data/train" -o "$out/pseudo/train" --face-model "$face/ict_face.npz" \
    --landmark-map "$face/mediapipe_to_ict.npz"

train() { # OUT and options; a finished leg is left alone
    test -e "$1/weights.safetensors" || export3d train "$out/data" --recipe base --pseudo "$out/pseudo/train" \
        --cache "$out/cache" --set loss.backbone_file="$networks/squeezenet1_1_features_fp32.pth" \
        --set loss.heads_file="$networks/squeeze.pth" -o "$@"
}
train "$out/small" --set model.image_size=128 --set loss.lpips=0.3 --set loop.lr=6e-4 --set loop.warmup_images=800 \
    --set loop.max_minutes="$((minutes / 3))" --set loop.validate_every=2000 --set model.score_steps="$((minutes * 5))"
decays="--set loop.lr=4e-4 --set loop.warmup_images=100 --set loop.decay=clock --set loop.decay_from=0.3
    --set loop.final_lr_ratio=0.05 --set loop.ema_rampup=0.5 --set loop.log_every=80 --set loop.validate_every=800
    --set loop.sheet_every=800 --set loop.max_minutes=$((minutes / 3)) --set loss.mouth=1"
# Unquoted on purpose: it holds several options.
# shellcheck disable=SC2086
train "$out/full" --from-pretrained "$out/small/weights.safetensors" $decays --set loss.lpips=2
# shellcheck disable=SC2086
train "$out/last" --from-pretrained "$out/full/weights.safetensors" $decays --set loss.lpips=1.5 --set loss.eyes=1 \
    --set 'model.freeze=["generator", "renderer"]' --set data.still_fraction=0.1 --set data.pseudo_fraction=0.1 \
    --set data.hard_fraction=0.8
export3d evaluate same "$out/data/val" -o "$out/evaluation" --weights "$out/last/weights.safetensors" --backbone none
