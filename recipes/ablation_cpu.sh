#!/bin/sh
# Table 3 at a small size, on one core: five ways to encode the expression, from the same start, with equal budgets.
#   recipes/ablation_cpu.sh DATA NETWORKS OUT [more options of export3d ablate]
# DATA: folder made by `export3d prepare`; NETWORKS: folder with squeezenet1_1_features_fp32.pth and squeeze.pth (LPIPS).
# Started again it goes on where it stopped; OUT/ablation.md is the table.
set -eu
data=$1 networks=$2 out=$3
shift 3
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_TOP_PAD_=268435456

export3d ablate "$data" -o "$out" --cache "$out/cache" --recipe base --set model.image_size=128 \
    --set loss.backbone_file="$networks/squeezenet1_1_features_fp32.pth" --set loss.heads_file="$networks/squeeze.pth" \
    --set loss.lpips=0.3 --set loop.max_images=3000 --set loop.precision=fp32 --set loop.lr=6e-4 \
    --set loop.warmup_images=800 --set loop.save_every=400 --pairs benchmarks/pairs_val.csv "$@"
