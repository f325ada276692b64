#!/usr/bin/env bash
# Train models that edit, inpaint, control, restore and enlarge drawn scenes, and score them on combinations they have
# never seen.
# Run it again after an interruption and it resumes. Needs an installed package: `make demo` or `pip install -e .`
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -d .venv ] && export PATH="$PWD/.venv/bin:$PATH"

[ -d data/shapes-plain-32 ] || python scripts/prepare_shapes.py data/shapes-plain-32 --num-images 20000 --size-px 32 --plain
[ -d data/shapes-edits-32 ] || python scripts/prepare_shapes.py data/shapes-edits-32 --num-images 12000 --size-px 32 --edits
[ -d data/shapes-hints-32 ] || python scripts/prepare_shapes_hints.py data/shapes-hints-32 --num-images 20000 --size-px 32
for name in text_encoder edit inpaint text_to_image control restore upscale; do
    ldm train "configs/tasks/$name.yaml" "$@"
done
for task in edit inpaint control restore upscale; do
    [ -d "runs/tasks/score-$task" ] || python scripts/score_tasks.py "$task" --model "runs/tasks/$task" \
        --output "runs/tasks/score-$task"
done
[ -d runs/tasks/score-blended-inpaint ] || python scripts/score_tasks.py blended-inpaint --model emoji \
    --output runs/tasks/score-blended-inpaint
