#!/usr/bin/env bash
# From nothing to ldm/assets/emoji: the whole path of this project as one script.
#
# On two CPU cores, 64 px, about two and a half hours in all; with a CUDA device, 128 px and the whole set of pictures.
# Interrupt it whenever you like: run it again and it goes on where it stopped. Arguments are settings for every program:
# `scripts/make_emoji_model.sh num_steps=20` walks the whole path in minutes, to a model that has learned nothing.
# Needs npm (the pictures and their names come from two npm packages) and an installed package: `make demo` or
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

# 1. The pictures and their captions (half a minute).
[ -d "data/emoji-all-$size_px" ] || python scripts/prepare_emoji.py "data/emoji-all-$size_px" --size-px "$size_px" --subset all
[ -d "data/emoji-$size_px" ] || python scripts/prepare_emoji.py "data/emoji-$size_px" --size-px "$size_px" --subset "$subset"

# 2. Pixels to latents and back: learned on all pictures, measured on those held out.
ldm train "$configs/autoencoder.yaml" "$@"

# 3. Words to vectors: an image tower and a text tower find each other; the text tower is kept.
ldm train "$configs/text_encoder.yaml" "$@"

# 4. Noise to latents, led by the words. The long part.
ldm train "$configs/denoiser.yaml" "$@"

# 5. What is it worth? And two grids to look at: runs/emoji/evaluation/{seen,unseen}.png
[ -d runs/emoji/evaluation ] || python scripts/evaluate_emoji.py --model runs/emoji/denoiser/pipeline \
    --data "data/emoji-$size_px" --output runs/emoji/evaluation

# 6. Into the package, as fp16 shards with a model card.
python scripts/embed_model.py runs/emoji ldm/assets/emoji
echo "done: ldm/assets/emoji. Look at runs/emoji/evaluation/seen.png before you trust it."
