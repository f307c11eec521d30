#!/bin/sh
# All weights that ship, from clips to files, on a processor: the expression encoder, `base`, and the core that `base` teaches.
# The shipped weights took many more legs to find this order (docs/training-log.md), and two that no command has: dense
# motion trained without rays, and a super-resolution distilled from a wider one. This order has been run with few clips and
# minutes, not at full length.
#   recipes/train_cpu.sh CLIPS MANIFEST.csv NETWORKS FACE OUT [MINUTES]
# CLIPS: folder of videos and portraits; MANIFEST.csv: see docs/data.md, with `sitting` where portraits belong together;
# NETWORKS: folder with squeezenet1_1_features_fp32.pth and squeeze.pth (LPIPS); FACE: folder with ict_face.npz and
# mediapipe_to_ict.npz; MINUTES: of training in all, 960 by default: eight parts, two of them for the core at 256 pixels.
# OUT/clebs/clebs.safetensors, OUT/base/weights.safetensors and OUT/core/weights.safetensors are the results.
# Started again it goes on with the first leg that has no weights yet; Ctrl-C ends a leg early, with its weights.
set -eu
usage="name what to train on: recipes/train_cpu.sh CLIPS MANIFEST.csv NETWORKS FACE OUT [MINUTES]"
clips=${1:?$usage} manifest=${2:?$usage} networks=${3:?$usage} face=${4:?$usage} out=${5:?$usage} minutes=${6:-960}
test "$minutes" -ge 8 || { echo "MINUTES is $minutes; give a whole number from 8" >&2; exit 2; }
part=$((minutes / 8))
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_TOP_PAD_=268435456

export3d prepare "$clips" --manifest "$manifest" -o "$out/data"
export3d pseudo-clips "$out/data/train" -o "$out/pseudo/train" --face-model "$face/ict_face.npz" \
    --landmark-map "$face/mediapipe_to_ict.npz"

leg() { # stage, OUT and options; a finished leg is left alone
    stage=$1 to=$2
    shift 2
    test -e "$to/weights.safetensors" || export3d "$stage" "$out/data" -o "$to" --cache "$out/cache" \
        --set loss.backbone_file="$networks/squeezenet1_1_features_fp32.pth" \
        --set loss.heads_file="$networks/squeeze.pth" "$@"
}

# The expression encoder
test -e "$out/clebs/clebs.safetensors" || export3d pretrain "$out/data" --pseudo "$out/pseudo/train" -o "$out/clebs" \
    --cache "$out/cache" --recipe base --set loop.max_minutes="$part"

# `base`: small frames; the same network at 256 pixels; then warp and super-resolution alone, with lips and eyes compared
# enlarged, of which half is kept; then what draws the inside of mouths
decays="--set loop.decay=clock --set loop.final_lr_ratio=0.05"
last="$decays --set loop.lr=4e-4 --set loop.warmup_images=100 --set loop.decay_from=0.3 --set loop.ema_rampup=0.5
    --set loop.log_every=80 --set loop.validate_every=800 --set loop.sheet_every=800"
base_leg() {
    leg train "$@" --recipe base --pseudo "$out/pseudo/train" --set loop.max_minutes="$part"
}
base_leg "$out/small" --set model.expression="$out/clebs/clebs.safetensors" --set model.image_size=128 \
    --set loss.lpips=0.3 --set loop.lr=6e-4 --set loop.warmup_images=800 --set loop.validate_every=2000 \
    --set model.score_steps="$((minutes * 2))"
# Unquoted on purpose: they hold several options.
# shellcheck disable=SC2086
base_leg "$out/full" $last --from-pretrained "$out/small/weights.safetensors" --set loss.lpips=2 --set loss.mouth=1
# shellcheck disable=SC2086
base_leg "$out/last" $last --from-pretrained "$out/full/weights.safetensors" --set loss.lpips=1.5 \
    --set loss.mouth=1 --set loss.eyes=1 --set loss.reading=3 --set 'model.freeze=["generator", "renderer"]' \
    --set data.still_fraction=0.1 --set data.pseudo_fraction=0.1 --set data.hard_fraction=0.8
test -e "$out/mean.safetensors" || export3d weights average "$out/last/weights.safetensors" \
    "$out/full/weights.safetensors" --part warp.dense warp.skip superres -o "$out/mean.safetensors"
# shellcheck disable=SC2086
leg refine "$out/base" $decays --from-pretrained "$out/mean.safetensors" --set model.trainable=mouth \
    --set data.hard_fraction=0.7 --set data.still_fraction=0.15 --set loop.batch_size=16 --set loop.lr=3e-4 \
    --set 'loop.betas=[0.0, 0.99]' --set loop.warmup_images=1000 --set loop.max_minutes="$part" \
    --set loop.decay_from=0.5 --set discriminator.lr=2e-4 --set 'discriminator.betas=[0.0, 0.99]' \
    --set loop.validate_every=0
export3d weights calibrate "$out/base/weights.safetensors"

# The core: small frames, then 256 pixels
export3d teach "$out/data" -o "$out/taught" --weights "$out/base/weights.safetensors" --limit "$((minutes * 3))"
core_leg() { # OUT, minutes and options
    to=$1 time=$2
    shift 2
    # shellcheck disable=SC2086
    leg train "$to" $decays --recipe core --set data.taught="[\"$out/taught\"]" --set loop.max_minutes="$time" "$@"
}
core_leg "$out/core_small" "$part" --from-pretrained "$out/base/weights.safetensors" --set model.image_size=128
core_leg "$out/core" "$((part * 2))" --from-pretrained "$out/core_small/weights.safetensors" --set loss.lpips=1.2 \
    --set loop.lr=3e-4

for name in base core; do
    export3d evaluate same "$out/data/val" -o "$out/evaluation_$name" --weights "$out/$name/weights.safetensors" \
        --backbone none
done
