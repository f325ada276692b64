#!/usr/bin/env bash
# Train a small model that enlarges emoji four times, and measure it.
#
# You can interrupt it at any time; run it again and it resumes where it stopped. Arguments are settings for the
# training. Needs npm and an installed package.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -d .venv ] && export PATH="$PWD/.venv/bin:$PATH"
runs=runs/emoji

# 1. Parts of emoji of 256 px (two minutes).
[ -d data/emoji-all-256 ] || python scripts/prepare_emoji.py data/emoji-all-256 --size-px 256 --subset all
[ -d data/emoji-tiles-64 ] || python scripts/prepare_emoji_tiles.py data/emoji-tiles-64 --data data/emoji-all-256

# 2. A denoiser that sees the small image beside the noise.
ldm train configs/emoji/upscale.yaml "$@"

# 3. PSNR and SSIM of emoji that it has not seen, beside bicubic enlargement.
[ -d "$runs/upscale-score" ] || python scripts/score_emoji_tiles.py --model "$runs/upscale/pipeline" \
    --data data/emoji-all-256 --output "$runs/upscale-score"

echo "done: look at $runs/upscale-score/held-out.png"
