#!/usr/bin/env bash
# Data, training, translation and BLEU for one language pair; see README.md beside this file.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"

usage() {
    cat <<'EOF'
Usage: run.sh [options] [-- further fairseq-train options]

Train an updown_transformer on Debian's translated package descriptions, or on text of your own,
and score it with sacrebleu. Every finished step is skipped and training resumes when run again.

  --lang XX         foreign language of the Debian corpus (default: de)
  --from-text DIR   use DIR/{train,valid,test}.{src,tgt} instead
  --reverse         translate from English into the foreign language
  --work DIR        everything is written here (default: ./translation-PAIR)
  --data DIR        share corpus and data-bin with other runs (default: the work directory)
  --updates N       train until this many updates (default: 4000; 30000 with --gpu)
  --minutes N       train for so long instead
  --stock           train fairseq's transformer of the same size, to compare with
  --vocab-size N    sentencepiece vocabulary (default: 8000)
  --seed N          split and training seed (default: 1)
  --gpu             the full updown_transformer_iwslt_de_en in fp16 with large batches
  -h, --help        show this text
EOF
}

lang=de from_text='' reverse=0 work='' data='' updates='' minutes='' stock=0 vocab_size=8000 seed=1 gpu=0
parse_options "--lang --from-text --work --data --updates --minutes --vocab-size --seed" \
    "--reverse --stock --gpu" "$@"

whole_numbers vocab_size ${updates:+updates} ${minutes:+minutes}
[[ $seed =~ ^[0-9]+$ ]] || die "--seed takes a number, not '$seed'"
[[ -z $updates || -z $minutes ]] || die "--updates and --minutes: give one of them"

need_tools sacrebleu

if [[ -n $from_text ]]; then
    source_lang=src target_lang=tgt
    origin=(--from-text "$from_text")
else
    source_lang=$lang target_lang=en
    origin=(--lang "$lang")
fi
if [[ $reverse == 1 ]]; then
    swap=$source_lang source_lang=$target_lang target_lang=$swap
fi

# without_updown WORD...: the words but for --updown-... options with their values, and --arch.
without_updown() {
    while (($#)); do
        if [[ $1 == --updown-* || $1 == --arch ]]; then
            shift 2
        else
            printf '%s\n' "$1"
            shift
        fi
    done
}

# training.txt, small.txt and generation.txt are the options that do not depend on the data;
# scripts/benchmarks/mixers.py reads them too.
here=$(dirname "${BASH_SOURCE[0]}")
if [[ $gpu == 1 ]]; then
    size=(--fp16 --max-tokens 8192 --lr 7e-4 --warmup-updates 4000 --dropout 0.3)
    updates=${updates:-30000}
else
    mapfile -t size < <(words "$here/small.txt")
    updates=${updates:-4000}
fi
mapfile -t training < <(words "$here/training.txt")
if [[ $stock == 1 ]]; then
    mapfile -t size < <(without_updown "${size[@]}")
    mapfile -t training < <(without_updown "${training[@]}")
    training+=(--arch transformer_iwslt_de_en)
fi

work=${work:-translation-$source_lang-$target_lang}
data=${data:-$work}
corpus=$data/corpus
binary=$data/data-bin
checkpoints=$work/checkpoints
mkdir -p "$data"

# Only the number of updates, or of minutes, may grow.
model=
[[ $stock == 0 ]] || model=", stock"
claim_work "$work" "pair $source_lang-$target_lang$model" "${origin[*]}" "vocab $vocab_size" \
    "seed $seed" "gpu $gpu" "data $data" "extra ${rest[*]}"

step "corpus: $corpus"
python "$root/scripts/corpora/debian_translation.py" --out "$corpus" "${origin[@]}" \
    --vocab-size "$vocab_size" --seed "$seed"

preprocess "$corpus" "$binary" "$source_lang" "$target_lang"

if [[ $minutes ]]; then
    unit=minutes budget=$minutes
    limit=(--stop-time-hours "$(awk "BEGIN { print $minutes / 60 }")")
else
    unit=updates budget=$updates
    limit=(--max-update "$updates")
fi
trained=0
[[ ! -e $checkpoints/$unit ]] || trained=$(<"$checkpoints/$unit")
if ((trained >= budget)); then
    step "fairseq-train: $trained $unit are done"
else
    step "fairseq-train: up to $budget $unit in $checkpoints"
    fairseq-train "$binary" --user-dir "$user_dir" "${training[@]}" "${size[@]}" \
        --source-lang "$source_lang" --target-lang "$target_lang" \
        "${limit[@]}" --validate-interval-updates 500 --save-interval-updates 500 \
        --keep-interval-updates 1 --no-epoch-checkpoints --save-dir "$checkpoints" \
        --seed "$seed" --log-format simple --log-interval 50 "${rest[@]}"
    echo "$budget" >"$checkpoints/$unit"
fi

output=$work/test.$source_lang-$target_lang
if [[ -e $output.generate && ! $checkpoints/checkpoint_best.pt -nt $output.generate ]]; then
    step "fairseq-generate: $output.generate is up to date"
else
    step "fairseq-generate: $output.generate"
    mapfile -t generation < <(words "$here/generation.txt")
    fairseq-generate "$binary" --user-dir "$user_dir" "${generation[@]}" \
        --source-lang "$source_lang" --target-lang "$target_lang" --gen-subset test \
        --path "$checkpoints/checkpoint_best.pt" >"$output.partial"
    mv "$output.partial" "$output.generate"
fi

step "sacrebleu against $corpus/raw/test.$target_lang"
grep '^D-' "$output.generate" | sed 's/^D-//' | sort -n | cut -f 3 >"$output.hyp"
translated=$(wc -l <"$output.hyp")
expected=$(wc -l <"$corpus/raw/test.$target_lang")
((translated == expected)) ||
    die "$output.generate holds $((translated)) of $((expected)) translations; remove it and run again"
sacrebleu "$corpus/raw/test.$target_lang" --input "$output.hyp" --metrics bleu chrf --width 2 |
    tee "$output.scores"
