#!/usr/bin/env bash
# The paper's router table, from a parallel corpus to figures over several training seeds:
#   jobs/paper/reproduce.sh TRAIN_DIR TEST_DIR
# Both hold Parquet with source, reference, source_lang and target_lang. Needs a GPU, the models and the
# quality environment; every step goes on where it was stopped. SEEDS="1 2 3" is the default.
set -euo pipefail
train_dir=$(realpath "$1") test_dir=$(realpath "$2")
here=$(dirname "$0") out=runs/paper
small=NiuTrans/LMT-60-0.6B

routelmt-batch label "$here/label.yaml" --set "input.uri=$train_dir" --output $out/labels
routelmt-batch label "$here/label.yaml" --set "input.uri=$test_dir" --output $out/labels-test

for seed in ${SEEDS:-1 2 3}; do
  set_seed=(--set "training.seed=$seed")
  routelmt-batch train "$here/train.yaml" "${set_seed[@]}" --output $out/routelmt-$seed
  routelmt-batch train "$here/train.yaml" "${set_seed[@]}" --set target=quality --output $out/routelmt-q-$seed
  routelmt-batch train "$here/encoder.yaml" "${set_seed[@]}" --output $out/xlmr-delta-$seed
  routelmt-batch evaluate $out/labels-test/data --budget 0.3 --seed "$seed" --out $out/evaluation-$seed \
    --router routelmt=$out/routelmt-$seed --router routelmt-q=$out/routelmt-q-$seed \
    --router xlmr-delta=$out/xlmr-delta-$seed --router length=$small --router entropy=$small \
    ${SENTINEL:+--router sentinel=$SENTINEL}
done

python "$here/summarise.py" $out/evaluation-*/evaluation.json
