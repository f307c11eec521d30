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
    export3d train "$out/data" --variants clebs --pseudo "$out/pseudo/train" --cache "$out/cache" --backbone squeeze \
        --backbone-file "$networks/squeezenet1_1_features_fp32.pth" --heads-file "$networks/squeeze.pth" \
        --l2 2 --lpips-raw 0 --face-emphasis 20 --still-fraction 0.2 --hard-fraction 0.6 --coarse 16 --fine 0 \
        --batch-size 8 --ema-halflife-images 800 --save-every 2000 "$@"
}
train -o "$out/small" --image-size 128 --channels-last --lpips 0.3 --lr 6e-4 --warmup-images 800 --max-minutes 25 \
    --validate-every 2000
train -o "$out/full" --from-pretrained "$out/small/weights.safetensors" --preset base --lpips 2 --mouth 1 --lr 4e-4 \
    --warmup-images 100 --max-minutes 45 --decay clock --decay-from 0.3 --final-lr-ratio 0.05 --validate-every 800
export3d evaluate same "$out/data/val" -o "$out/evaluation" --weights "$out/full/weights.safetensors" --backbone none
