#!/usr/bin/env bash
# Make ldm/assets/emoji from scratch, with every step of this project in one script.
#
# Two CPU cores need about two and a half hours, at 64 px. With a CUDA device it uses 128 px and all emoji.
# You can interrupt it at any time; run it again and it resumes where it stopped. Arguments are settings for all
# programs: `scripts/make_emoji_model.sh num_steps=20` runs all steps in minutes, for a model that has learned nothing.
# Needs npm (the images and their names come from two npm packages) and an installed package: `make demo` or
# `pip install -e .`
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -d .venv ] && export PATH="$PWD/.venv/bin:$PATH"

if python -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
    size_px=128 subset=all configs=configs/emoji/cuda
else
    size_px=64 subset=clear configs=configs/emoji
fi
echo "making the model at $size_px px from the subset '$subset' with $configs"

# 1. The images and their captions (half a minute).
[ -d "data/emoji-all-$size_px" ] || python scripts/prepare_emoji.py "data/emoji-all-$size_px" --size-px "$size_px" --subset all
[ -d "data/emoji-$size_px" ] || python scripts/prepare_emoji.py "data/emoji-$size_px" --size-px "$size_px" --subset "$subset"

# 2. The autoencoder: pixels to latents and back, trained on all images, evaluated on held-out ones.
ldm train "$configs/autoencoder.yaml" "$@"

# 3. The text encoder: an image tower and a text tower learn to match; the text tower is kept.
ldm train "$configs/text_encoder.yaml" "$@"

# 4. The denoiser: noise to latents, guided by text. This takes longest.
ldm train "$configs/denoiser.yaml" "$@"

# 5. Evaluation, with two grids to look at: runs/emoji/evaluation/{seen,unseen}.png
[ -d runs/emoji/evaluation ] || python scripts/evaluate_emoji.py --model runs/emoji/denoiser/pipeline \
    --data "data/emoji-$size_px" --output runs/emoji/evaluation
ldm audit memorisation runs/emoji/denoiser/pipeline --data "data/emoji-$size_px" --output runs/emoji/copies

# 6. Store it in the package, as fp16 shards with a model card.
python scripts/embed_model.py runs/emoji ldm/assets/emoji
echo "done: ldm/assets/emoji. Check runs/emoji/evaluation/seen.png before you use it."
