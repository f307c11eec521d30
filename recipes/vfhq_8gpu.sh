#!/bin/sh
# A laboratory's run: VFHQ (or as many clips of your own) on one machine with eight GPUs. docs/training.md says how long it
# takes and what it costs, and how that was reckoned. This order has not been run as a whole.
#   recipes/vfhq_8gpu.sh CLIPS MANIFEST.csv NETWORKS OUT
# CLIPS: folder of videos; MANIFEST.csv: columns file, person, split (train or val; docs/data.md: VFHQ's test clips);
# NETWORKS: folder with squeezenet1_1_features_fp32.pth and squeeze.pth (LPIPS).
# Started again it goes on where it stopped. From the environment: GPUS (8); PRESET (base; paper for the paper's sizes);
# BATCH (256, of all GPUs), LR (1e-3; the runs of docs/training-log.md had 5e-4 with 8 images a step); IMAGES (2400000, the
# paper's 300,000 steps of eight); MEMORY (GB of decoded frames on each GPU, 40; VFHQ at 256 pixels has about 150).
set -eu
clips=$1 manifest=$2 networks=$3 out=$4
gpus=${GPUS:-8} batch=${BATCH:-256}
common="--set loss.backbone_file=$networks/squeezenet1_1_features_fp32.pth --set loss.heads_file=$networks/squeeze.pth
    --set loss.lpips=0.7 --set data.memory=${MEMORY:-40} --set data.still_fraction=0"

together() {
    accelerate launch --multi_gpu --num_processes "$gpus" --num_machines 1 --mixed_precision no --dynamo_backend no \
        -m export3d "$@"
}

export3d prepare "$clips" --manifest "$manifest" -o "$out/data"

# The expression encoder is small: one GPU, 480,000 clips as in the paper (60,000 steps of eight).
export3d pretrain "$out/data" -o "$out/clebs" --cache "$out/cache" --recipe base --set image.width=64 \
    --set loop.batch_size=32 --set loop.max_images=480000 --set loop.warmup_images=3200 \
    --set loop.ema_halflife_images=10000 --set loop.log_every=3200 --set loop.validate_every=16000 \
    --set loop.sheet_every=48000 --set loop.save_every=16000

# Unquoted on purpose: it holds several options.
# shellcheck disable=SC2086
together train "$out/data" -o "$out/one" --recipe base --set model.preset="${PRESET:-base}" \
    --set model.expression="$out/clebs/clebs.safetensors" $common --set render.coarse=none --set render.fine=none \
    --set loop.batch_size="$batch" --set loop.max_images="${IMAGES:-2400000}" --set loop.lr="${LR:-1e-3}" \
    --set loop.warmup_images=20000 --set loop.decay=images --set loop.decay_from=0.6 --set loop.final_lr_ratio=0.02 \
    --set loop.ema_halflife_images=10000 --set loop.log_every=2560 --set loop.validate_every=48000 \
    --set loop.sheet_every=48000 --set loop.save_every=48000

# Against the discriminator: the paper's 10,000 steps of eight.
# shellcheck disable=SC2086
together refine "$out/data" -o "$out/two" --from-pretrained "$out/one/weights.safetensors" --recipe base $common \
    --set loop.batch_size=64

for protocol in same cross; do
    # shellcheck disable=SC2086
    export3d evaluate "$protocol" "$out/data" -o "$out/evaluation_$protocol" --weights "$out/two/weights.safetensors" \
        --workers "$gpus"
done
