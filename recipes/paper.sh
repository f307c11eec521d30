#!/bin/sh
# The paper's three stages in order, to the letter (docs/paper.md): CLeBS, reconstruction, reconstruction with a
# discriminator. One GPU; the paper took about five days on an A100. This order has not been run at full length.
#   recipes/paper.sh DATA RUN [more settings]
# DATA: folder made by `export3d prepare`. RUN gets clebs/, one/ and two/; RUN/two/weights.safetensors is the result.
# Started again it goes on where it stopped. Settings go to every stage, or to the one they name, such as
# --set train.loss.heads_file=vgg.pth --set refine.loss.heads_file=vgg.pth (LPIPS's linear weights, lpips 0.1; the
# paper's loss needs them) or --set pretrain.loop.max_images=80000.
set -eu
data=$1 run=$2
shift 2

export3d pretrain "$data" -o "$run/clebs" --recipe paper --cache "$run/cache" "$@"
export3d train "$data" -o "$run/one" --recipe paper --cache "$run/cache" \
    --set model.expression="$run/clebs/clebs.safetensors" "$@"
export3d refine "$data" -o "$run/two" --recipe paper --cache "$run/cache" \
    --from-pretrained "$run/one/weights.safetensors" "$@"
