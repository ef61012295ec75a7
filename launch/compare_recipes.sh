#!/usr/bin/env bash
# Train several recipes on the same images, then compare them in one table and one picture:
#     launch/compare_recipes.sh                                # the tutorial's two: everything, and the head alone
#     launch/compare_recipes.sh finetune layerwise_lr -- --data path/to/photos --model resnet18
# What follows -- goes to every training. LAUNCH="accelerate launch" trains through Accelerate's launcher.
set -euo pipefail

recipes=()
while [ $# -gt 0 ] && [ "$1" != "--" ]; do recipes+=("$1"); shift; done
if [ $# -gt 0 ]; then shift; fi
if [ ${#recipes[@]} -eq 0 ]; then recipes=(finetune feature_extractor); fi

place=${PLACE:-runs/compare-$(date +%Y%m%d-%H%M%S)}
runs=()
for recipe in "${recipes[@]}"; do
    ${LAUNCH:-python} train.py --recipe "$recipe" --output "$place/$recipe" "$@"
    runs+=("$place/$recipe")
done
python -m finetune compare "${runs[@]}" --picture "$place/curves.png"
echo "Curves  $place/curves.png"
