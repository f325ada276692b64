#!/usr/bin/env bash
# Train the emoji model further to edit images as it is told ("make the apple blue"), and score it.
#
# You can interrupt it at any time; run it again and it resumes where it stopped. Arguments are settings for the
# training: `scripts/make_emoji_edit_model.sh base=emoji` starts from the embedded model in place of
# runs/emoji/composed, which make_composed_emoji_model.sh leaves. Needs npm and an installed package.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -d .venv ] && export PATH="$PWD/.venv/bin:$PATH"
runs=runs/emoji composed=data/emoji-composed-64

# 1. Pairs of scenes that differ in one thing, with the instruction (three minutes).
[ -d "$composed" ] || python scripts/prepare_composed_emoji.py "$composed"
[ -d data/emoji-edits-64 ] || python scripts/prepare_emoji_edits.py data/emoji-edits-64 --composed "$composed"

# 2. The denoiser and the text encoder go on, with the image to edit beside the noise.
ldm train configs/emoji/edit.yaml "$@"

# 3. The share of held-out and of seen edits that are right.
[ -d "$runs/edit-score" ] || python scripts/score_emoji_edits.py --model "$runs/edit/pipeline" --data "$composed" \
    --output "$runs/edit-score"

echo "done: look at $runs/edit-score/held-out.png, and put the model into the package with"
echo "    python scripts/embed_model.py --kind edit $runs ldm/assets/emoji-edit"
