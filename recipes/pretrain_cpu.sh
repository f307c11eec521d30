#!/bin/sh
# The expression encoder that ships, on one core: pseudo-clips from the portraits, then CLeBS on clips and pseudo-clips.
#   recipes/pretrain_cpu.sh DATA FACE OUT
# DATA: folder made by `export3d prepare`; FACE: folder with ict_face.npz and mediapipe_to_ict.npz.
# The London portraits stay out: they are the test of held expressions.
set -eu
data=$1 face=$2 out=$3
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_TOP_PAD_=268435456

mkdir -p "$out"
tail -n +2 benchmarks/london_pairs.csv | cut -d, -f2,3 | tr , '\n' > "$out/london.txt"
export3d pseudo-clips "$data/train" -o "$out/pseudo/train" --face-model "$face/ict_face.npz" \
    --landmark-map "$face/mediapipe_to_ict.npz" --exclude "$out/london.txt"

pretrain() {
    export3d pretrain "$data" --pseudo "$out/pseudo/train" -o "$out/clebs" --cache "$out/cache" --recipe base "$@"
}
pretrain
pretrain --set loop.max_minutes=5 --set data.noise=0.15 # resumes
export3d evaluate-expression "$data" -o "$out/expression" --encoder "$out/clebs/clebs.safetensors" \
    --pairs benchmarks/london_pairs.csv
