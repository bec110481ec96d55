#!/usr/bin/env bash
# The paper's router table and its table of guards, from a parallel corpus to figures over several training seeds:
#   jobs/paper/reproduce.sh TRAIN_DIR TEST_DIR
# Both hold Parquet with source, reference, source_lang and target_lang. Needs a GPU, the models and the
# quality environment; every step continues where it was stopped. SEEDS="1 2 3" is the default.
# Guards by the labels' own XCOMET with references (upper), which no job has, and by KIWI without (free).
set -euo pipefail
train_dir=$(realpath "$1") test_dir=$(realpath "$2")
here=$(dirname "$0") out=runs/paper
small=NiuTrans/LMT-60-0.6B
kiwi=comet:${KIWI:-Unbabel/wmt22-cometkiwi-da}

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
    ${SENTINEL:+--router sentinel=$SENTINEL} \
    --metric "kiwi=$kiwi" --guard predicted=routelmt+routelmt-q --guard upper=routelmt+quality_small \
    --guard free=routelmt+kiwi_small --verify verified=routelmt+kiwi_small+kiwi_large
done

python "$here/summarise.py" $out/evaluation-*/evaluation.json
