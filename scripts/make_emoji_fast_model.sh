#!/usr/bin/env bash
# Distil the embedded model into a LoRA that draws in four steps without guidance, and score it.
#
# You can interrupt it at any time; run it again and it resumes where it stopped. Arguments are settings for the
# training. Needs npm and an installed package.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -d .venv ] && export PATH="$PWD/.venv/bin:$PATH"
runs=runs/emoji composed=data/emoji-composed-64

# 1. The plain emoji and the composed scenes (two minutes).
[ -d data/emoji-64 ] || python scripts/prepare_emoji.py data/emoji-64
[ -d "$composed" ] || python scripts/prepare_composed_emoji.py "$composed"

# 2. Latent Consistency Distillation.
ldm train configs/emoji/lcm.yaml "$@"

# 3. Recall of the plain captions, and the shares of held-out scenes that are right.
[ -d "$runs/lcm-evaluation" ] || python scripts/evaluate_emoji.py --model "$runs/lcm" --data data/emoji-64 \
    --output "$runs/lcm-evaluation"
[ -d "$runs/lcm-score" ] || python scripts/score_composed_emoji.py --model "$runs/lcm" --data "$composed" \
    --kinds colour count pair --output "$runs/lcm-score"

echo "done: look at $runs/lcm-score/*.png and $runs/lcm-evaluation/*.png. If recall and the held-out scenes are within 0.02"
echo "of the embedded model's, put it into the package with"
echo "    python scripts/embed_adapter.py $runs ldm/assets/emoji-fast"
