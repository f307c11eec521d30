#!/bin/sh
# A laboratory's run: VFHQ (or as many clips of your own) on one machine with eight GPUs. docs/training.md says how long it
# takes and what it costs, and how that was reckoned. This order has not been run as a whole.
#   recipes/vfhq_8gpu.sh CLIPS MANIFEST.csv NETWORKS OUT
# CLIPS: folder of videos; MANIFEST.csv: columns file, person, split (train or val); NETWORKS: folder with
# squeezenet1_1_features_fp32.pth and squeeze.pth (LPIPS).
# Started again it goes on where it stopped. From the environment: GPUS (8); PRESET (base; paper for the paper's sizes);
# BATCH (256, of all GPUs), LR (1e-3; the runs of docs/training-log.md had 5e-4 with 8 images a step); IMAGES (2400000, the
# paper's 300,000 steps of eight); MEMORY (GB of decoded frames on each GPU, 40; VFHQ at 256 pixels has about 150).
set -eu
clips=$1 manifest=$2 networks=$3 out=$4
gpus=${GPUS:-8} batch=${BATCH:-256}
lpips="--backbone squeeze --backbone-file $networks/squeezenet1_1_features_fp32.pth --heads-file $networks/squeeze.pth"
frames="--memory ${MEMORY:-40} --still-fraction 0 --hard-fraction 0.6 --face-emphasis 20"

together() {
    accelerate launch --multi_gpu --num_processes "$gpus" --num_machines 1 --mixed_precision no --dynamo_backend no \
        -m export3d "$@"
}

export3d prepare "$clips" --manifest "$manifest" -o "$out/data"

# The expression encoder is small: one GPU, 480,000 clips as in the paper (60,000 steps of eight).
export3d pretrain "$out/data" -o "$out/clebs" --cache "$out/cache" --objective symmetric --batch-size 32 \
    --max-images 480000 --lr 5e-4 --weight-decay 0.01 --warmup-images 3200 --decay images --decay-from 0.3 \
    --final-lr-ratio 0.02 --channels-last --log-every 3200 --validate-every 16000 --sheet-every 48000 --save-every 16000

# Unquoted on purpose: each holds several options.
# shellcheck disable=SC2086
together train "$out/data" -o "$out/one" --preset "${PRESET:-base}" --variants clebs \
    --expression "$out/clebs/clebs.safetensors" $lpips $frames --l2 2 --lpips 0.7 --lpips-raw 0 \
    --batch-size "$batch" --max-images "${IMAGES:-2400000}" --lr "${LR:-1e-3}" --warmup-images 20000 \
    --decay images --decay-from 0.6 --final-lr-ratio 0.02 --ema-halflife-images 10000 --channels-last \
    --log-every 2560 --validate-every 48000 --sheet-every 48000 --save-every 48000

# Against the discriminator: the paper's 10,000 steps of eight.
# shellcheck disable=SC2086
together refine "$out/data" -o "$out/two" --from-pretrained "$out/one/weights.safetensors" $lpips $frames \
    --l2 2 --lpips 0.7 --lpips-raw 0 --batch-size 64 --max-images 80000 --channels-last

for protocol in same cross; do
    # shellcheck disable=SC2086
    export3d evaluate "$protocol" "$out/data" -o "$out/evaluation_$protocol" --weights "$out/two/weights.safetensors" \
        --workers "$gpus"
done
