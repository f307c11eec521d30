#!/bin/sh
# Table 3 at a small size, on one core: five ways to encode the expression, from the same start, with equal budgets.
#   recipes/ablation_cpu.sh DATA NETWORKS OUT [more options of export3d ablate]
# DATA: folder made by `export3d prepare`; NETWORKS: folder with squeezenet1_1_features_fp32.pth and squeeze.pth (LPIPS).
# Started again it goes on where it was stopped; OUT/ablation.md is the table.
set -eu
data=$1 networks=$2 out=$3
shift 3
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_TOP_PAD_=268435456

export3d ablate "$data" -o "$out" --cache "$out/cache" --image-size 128 --max-images 3000 --backbone squeeze \
    --backbone-file "$networks/squeezenet1_1_features_fp32.pth" --heads-file "$networks/squeeze.pth" \
    --l2 2 --lpips 0.3 --lpips-raw 0 --face-emphasis 20 --still-fraction 0.2 --hard-fraction 0.6 --coarse 16 --fine 0 \
    --batch-size 8 --channels-last --precision fp32 --lr 6e-4 --warmup-images 800 --ema-halflife-images 800 \
    --save-every 400 --pairs benchmarks/pairs_val.csv "$@"
