#!/usr/bin/env bash
# Trains the networks in jaxanom/assets/foundry from nothing, on the machine at hand.
# If it is killed and started again, it continues where it stopped. It takes no arguments.
set -euo pipefail
cd "$(dirname "$0")/.."
JAXANOM="${JAXANOM:-python -m jaxanom}"
OUT=runs/pretrain
SEEN=$(python -c 'from configs import common; print(",".join(common.SEEN))')

[ -d "$OUT/foundry" ] || {
  $JAXANOM data foundry --out "$OUT/foundry.partial" --categories "$SEEN" --size 64 \
    --seed 1 --num-train 500 --num-per-defect 100 --num-test-good 0
  mv "$OUT/foundry.partial" "$OUT/foundry"
}
$JAXANOM data tokenizer --out "$OUT/tokenizer"
$JAXANOM train --config=configs/pretraining/autoencoder.py --run="$OUT/autoencoder"
$JAXANOM train --config=configs/pretraining/clip.py --run="$OUT/clip"
mkdir -p "$OUT/text"
cp -r "$OUT/clip/model/clip" "$OUT/tokenizer" "$OUT/text/"
$JAXANOM train --config=configs/pretraining/unet.py --run="$OUT/unet"
python -m benchmarks.quality.towers --runs "$OUT" --assets jaxanom/assets/foundry
