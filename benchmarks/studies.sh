#!/usr/bin/env bash
# The image ablations on real data in docs/results.md, one after the other: CoNLL-2003 with pictures at random, by name
# and by caption, then SROIE, then the synthetic sample set. Hours on two cores; what is done is not done again, so an
# interrupted run is started anew by the same command.
#
#   DATA=data OUT=outputs bash benchmarks/studies.sh [random lexicon flickr sroie sample]
#
# DATA holds conll2003/, entity-image-bank/, flickr8k-1000/ and sroie-receipts/; OUT/parts the encoders that
# benchmarks/pretrained_parts.py saves; OUT/quickstart what `make quickstart` leaves. PYTHON is .venv/bin/python. FLAGS
# goes to every training on real data, such as "--bf16 True --use_cpu True" where a CPU multiplies bfloat16.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-.venv/bin/python}
DATA=${DATA:?the folder of the data sets}
OUT=${OUT:-outputs}
ENCODERS=(--text_model "$OUT/parts/minilm" --vision_model "$OUT/parts/mobilenet_v2" --feature_cache_dir "$OUT/features")
LEAN=(--vision_loss_weight 0 --fusion_dropout 0 --image_dropout 0.5)
read -ra FLAGS <<< "${FLAGS:-}"

pair() { # name, bank, further flags
    local output="$OUT/conll-$1" bank=$2
    shift 2
    [ -f "$output/dataset_dict.json" ] || "$PYTHON" scripts/pair_images.py --train_file "$DATA/conll2003/train.txt" \
        --validation_file "$DATA/conll2003/valid.txt" --test_file "$DATA/conll2003/test.txt" \
        --image_bank "$DATA/$bank" --output_dir "$output" "$@"
}

conll() { # name, seeds
    local name=$1
    shift
    "$PYTHON" scripts/run_ner.py --dataset_name "$OUT/conll-$name" "${ENCODERS[@]}" --learning_rate 1.5e-4 \
        --fusion_learning_rate 5e-4 --warmup_steps 0.1 --num_train_epochs 3 --per_device_train_batch_size 32 \
        --per_device_eval_batch_size 64 "${LEAN[@]}" "${FLAGS[@]}" --image_ablation --seeds "$@" \
        --output_dir "$OUT/study-$name"
}

share_twins() { # from, to: the text-only twin sees no picture, so one training serves every pairing
    for twin in "$OUT/study-$1"/seed-*/text_only; do
        local target="$OUT/study-$2/$(basename "$(dirname "$twin")")"
        [ -f "$twin/results.json" ] && [ ! -d "$target/text_only" ] || continue
        mkdir -p "$target" && cp -r "$twin" "$target/"
    done
}

[ $# -gt 0 ] || set -- random lexicon flickr sroie sample
for study in "$@"; do
    case $study in
        random)
            pair random entity-image-bank --strategy random
            conll random 0 1 2
            ;;
        lexicon)
            pair lexicon entity-image-bank
            share_twins random lexicon
            conll lexicon 0 1 2
            ;;
        flickr)
            pair flickr flickr8k-1000 --strategy retrieval --text_model "$OUT/parts/minilm"
            share_twins random flickr
            conll flickr 0
            ;;
        sroie)
            mkdir -p "$OUT/sroie"
            head -450 "$DATA/sroie-receipts/train.jsonl" > "$OUT/sroie/train.jsonl"
            tail -50 "$DATA/sroie-receipts/train.jsonl" > "$OUT/sroie/valid.jsonl"
            cp "$DATA/sroie-receipts/valid.jsonl" "$OUT/sroie/test.jsonl"
            "$PYTHON" scripts/run_ner.py "${ENCODERS[@]}" --train_file "$OUT/sroie/train.jsonl" \
                --validation_file "$OUT/sroie/valid.jsonl" --test_file "$OUT/sroie/test.jsonl" \
                --image_folder "$DATA/sroie-receipts" --learning_rate 1.5e-4 \
                --fusion_learning_rate 5e-4 --warmup_steps 0.1 --num_train_epochs 8 --per_device_train_batch_size 8 \
                --per_device_eval_batch_size 64 "${LEAN[@]}" "${FLAGS[@]}" --image_ablation --seeds 0 1 2 3 4 \
                --output_dir "$OUT/study-sroie"
            ;;
        sample)
            "$PYTHON" scripts/run_ner.py --dataset_name "$OUT/quickstart/data" \
                --text_model "$OUT/quickstart/encoders/text" --vision_model "$OUT/quickstart/encoders/vision" \
                --freeze_vision False --fusion_hidden_size 128 --vision_loss_weight 1.0 --learning_rate 1e-3 \
                --fusion_learning_rate 2e-3 --warmup_steps 0.1 --num_train_epochs 7 --per_device_train_batch_size 16 \
                --per_device_eval_batch_size 100 --image_ablation --seeds 0 1 2 3 4 --output_dir "$OUT/study-sample"
            ;;
        *)
            echo "no study is called $study" >&2
            exit 2
            ;;
    esac
done
