#!/usr/bin/env bash
# Train a model of drawn scenes (about two hours on one core), score it on combinations it has never seen, and export it
# with all that was measured on its card: runs/shapes/export/README.md
# Run it again after an interruption and it resumes. Needs an installed package: `make demo` or `pip install -e .`
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -d .venv ] && export PATH="$PWD/.venv/bin:$PATH"

[ -d data/shapes-plain-32 ] || python scripts/prepare_shapes.py data/shapes-plain-32 --num-images 20000 --size-px 32 --plain
ldm train configs/shapes/autoencoder.yaml "$@"
ldm train configs/shapes/text_encoder.yaml "$@"
ldm train configs/shapes/denoiser.yaml "$@"
[ -d runs/shapes/score ] || python scripts/score_shapes.py --plain --model runs/shapes/denoiser \
    --output runs/shapes/score
cat runs/shapes/score/report.json

# The card finds the reports beside the run. The images that the model is compared with are ones it was not trained on.
[ -d data/shapes-unseen-32 ] || python scripts/prepare_shapes.py data/shapes-unseen-32 --num-images 1000 --size-px 32 \
    --plain --seed 1
ldm evaluate runs/shapes/denoiser --data data/shapes-unseen-32 --num-images 1000 --output runs/shapes/evaluation
ldm audit memorisation runs/shapes/denoiser --data data/shapes-plain-32 --output runs/shapes/copies
[ -d runs/shapes/export ] || ldm export runs/shapes/denoiser runs/shapes/export
