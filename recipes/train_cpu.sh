#!/bin/sh
# What the shipped weights taught, in two legs on a processor: small frames first, then the same network at 256 pixels, on
# the packaged expression encoder (recipes/pretrain_cpu.sh makes it) and with pseudo-clips.
# They took twelve legs to find it: docs/training-log.md. This order itself has not been run from the start.
#   recipes/train_cpu.sh CLIPS MANIFEST.csv NETWORKS FACE OUT
# CLIPS: folder of videos and portraits; NETWORKS: folder with squeezenet1_1_features_fp32.pth and squeeze.pth (LPIPS);
# FACE: folder with ict_face.npz and mediapipe_to_ict.npz.
set -eu
clips=$1 manifest=$2 networks=$3 face=$4 out=$5
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_TOP_PAD_=268435456

export3d prepare "$clips" --manifest "$manifest" -o "$out/data"
export3d pseudo-clips "$out/data/train" -o "$out/pseudo/train" --face-model "$face/ict_face.npz" \
    --landmark-map "$face/mediapipe_to_ict.npz"

train() {
    export3d train "$out/data" --recipe base --pseudo "$out/pseudo/train" --cache "$out/cache" \
        --set loss.backbone_file="$networks/squeezenet1_1_features_fp32.pth" \
        --set loss.heads_file="$networks/squeeze.pth" "$@"
}
train -o "$out/small" --set model.image_size=128 --set loss.lpips=0.3 --set loop.lr=6e-4 --set loop.warmup_images=800 \
    --set loop.max_minutes=25 --set loop.validate_every=2000
train -o "$out/full" --from-pretrained "$out/small/weights.safetensors" --set loss.lpips=2 --set loss.mouth=1 \
    --set loop.lr=4e-4 --set loop.warmup_images=100 --set loop.max_minutes=45 --set loop.decay=clock \
    --set loop.decay_from=0.3 --set loop.final_lr_ratio=0.05 --set loop.ema_rampup=0.5 --set loop.log_every=80 \
    --set loop.validate_every=800 --set loop.sheet_every=200
export3d evaluate same "$out/data/val" -o "$out/evaluation" --weights "$out/full/weights.safetensors" --backbone none
