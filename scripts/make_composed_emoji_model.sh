#!/usr/bin/env bash
# Train the emoji model further on composed scenes (a blue apple, two apples, a dog and a rocket), and score it.
#
# You can interrupt it at any time; run it again and it resumes where it stopped. Arguments are settings for the
# first training, which starts from runs/emoji/denoiser, where make_emoji_model.sh leaves its model. Needs npm and an
# installed package.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -d .venv ] && export PATH="$PWD/.venv/bin:$PATH"
runs=runs/emoji composed=data/emoji-composed-64

# 1. The plain emoji and the composed scenes (two minutes).
[ -d data/emoji-64 ] || python scripts/prepare_emoji.py data/emoji-64
[ -d "$composed" ] || python scripts/prepare_composed_emoji.py "$composed"

# 2. The denoiser and the text encoder go on, and once more with more of the plain emoji, for their details.
ldm train configs/emoji/composed.yaml "$@"
ldm train configs/emoji/composed-longer.yaml

# 3. Recall of the plain captions, which must not suffer, and the shares of held-out scenes that are right.
[ -d "$runs/composed-evaluation" ] || python scripts/evaluate_emoji.py --model "$runs/composed-longer/pipeline" \
    --data data/emoji-64 --output "$runs/composed-evaluation"
[ -d "$runs/composed-score" ] || python scripts/score_composed_emoji.py --model "$runs/composed-longer/pipeline" \
    --data "$composed" --kinds colour count pair --output "$runs/composed-score"

echo "done: look at $runs/composed-score/*.png and $runs/composed-evaluation/*.png. If recall (top 1) is at least 0.98 and"
echo "the held-out scenes are better than the embedded model's, put it into the package with"
echo "    python scripts/embed_model.py --kind composed $runs ldm/assets/emoji"
