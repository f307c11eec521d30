#!/bin/sh
# The paper's three stages in order, to the letter (docs/paper.md): CLeBS, reconstruction, reconstruction with a
# discriminator. One GPU; the paper took about five days on an A100. This order has not been run at full length.
#   recipes/paper.sh DATA RUN [more options]
# DATA: folder made by `export3d prepare`, with --coefficients for the paper's 64 expression coefficients (docs/data.md:
# their files, and the paper's test clips). RUN gets clebs/, one/ and two/; RUN/two/weights.safetensors is the result.
# Started again it goes on where it stopped. Options go to every stage, settings to the stage that they name:
#   --set data.memory=40: GB of decoded frames at once, for more than that (VFHQ at 256 pixels has about 150);
#   --cache DIR: for less, decodes them once for all stages;
#   --set train.loss.heads_file=vgg.pth --set refine.loss.heads_file=vgg.pth: LPIPS's linear weights (version 0.1).
# The second and third stage need VGG16: torchvision's, or --set train.loss.backbone_file=FILE and the same for refine.
set -eu
usage="name the data and the run: recipes/paper.sh DATA RUN [more options]"
data=${1:?$usage} run=${2:?$usage}
shift 2

export3d pretrain "$data" -o "$run/clebs" --recipe paper "$@"
export3d train "$data" -o "$run/one" --recipe paper --set model.expression="$run/clebs/clebs.safetensors" "$@"
export3d refine "$data" -o "$run/two" --recipe paper --from-pretrained "$run/one/weights.safetensors" "$@"
