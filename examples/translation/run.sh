#!/usr/bin/env bash
# Data, training, translation and BLEU for one language pair; see README.md beside this file.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"

usage() {
    cat <<'EOF'
Usage: run.sh [options] [-- further fairseq-train options]

Train an updown_transformer on Debian's translated package descriptions, or on text of your own,
and score it with sacrebleu. Every finished step is skipped and training resumes when run again.

  --lang XX         foreign language of the Debian corpus (LANGUAGE_CODE, default: de)
  --from-text DIR   use DIR/{train,valid,test}.{src,tgt} instead (FROM_TEXT)
  --reverse         translate from English into the foreign language (REVERSE=1)
  --work DIR        everything is written here (WORK, default: ./translation-PAIR)
  --data DIR        share corpus and data-bin with other runs (DATA, default: the work directory)
  --updates N       train until this many updates (UPDATES, default: 4000; 30000 with --gpu)
  --vocab-size N    sentencepiece vocabulary (VOCAB_SIZE, default: 8000)
  --seed N          split and training seed (SEED, default: 1)
  --gpu             the full updown_transformer_iwslt_de_en in fp16 with large batches (GPU=1)
  -h, --help        show this text

Each option may be given as the environment variable in brackets instead.
EOF
}

lang=${LANGUAGE_CODE:-de}
from_text=${FROM_TEXT:-}
reverse=${REVERSE:-0}
work=${WORK:-}
data=${DATA:-}
updates=${UPDATES:-}
vocab_size=${VOCAB_SIZE:-8000}
seed=${SEED:-1}
gpu=${GPU:-0}

while (($#)); do
    case $1 in
        --lang | --from-text | --work | --data | --updates | --vocab-size | --seed)
            (($# > 1)) || die "$1 needs a value; see --help"
            name=${1#--}
            printf -v "${name//-/_}" '%s' "$2"
            shift
            ;;
        --reverse) reverse=1 ;;
        --gpu) gpu=1 ;;
        -h | --help)
            usage
            exit 0
            ;;
        --)
            shift
            break
            ;;
        *) die "unknown option $1; see --help (options for fairseq-train go after --)" ;;
    esac
    shift
done

[[ $seed =~ ^[0-9]+$ ]] || die "--seed takes a number, not '$seed'"
[[ -z $updates || $updates =~ ^[1-9][0-9]*$ ]] || die "--updates takes a number, not '$updates'"

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

# d 192 and batches of 1,800 tokens suit a few CPU cores. Blocks of 16 pieces with 4 slots each are
# shorter than most segments, so the compression is at work even though the text is short.
if [[ $gpu == 1 ]]; then
    size=(--fp16 --max-tokens 8192 --lr 7e-4 --warmup-updates 4000 --dropout 0.3)
    updates=${updates:-30000}
else
    size=(
        --encoder-layers 3 --decoder-layers 3
        --encoder-embed-dim 192 --decoder-embed-dim 192
        --encoder-ffn-embed-dim 512 --decoder-ffn-embed-dim 512
        --encoder-attention-heads 4 --decoder-attention-heads 4
        --max-tokens 1800 --lr 1e-3 --warmup-updates 1000 --dropout 0.1
    )
    updates=${updates:-4000}
fi
# With its default multiple of 8, fairseq > 0.12.2 drops the last batch of every set, the longest
# sentences, without a word.
batching=(--required-batch-size-multiple 1)
updown=(
    --updown-block-size 16 --updown-slots 4
    --updown-decoder-block-size 16 --updown-decoder-slots 4
)

work=${work:-translation-$source_lang-$target_lang}
data=${data:-$work}
corpus=$data/corpus
binary=$data/data-bin
checkpoints=$work/checkpoints
mkdir -p "$data"

# Only the number of updates may grow.
claim_work "$work" "pair $source_lang-$target_lang" "${origin[*]}" "vocab $vocab_size" \
    "seed $seed" "gpu $gpu" "data $data" "extra $*"

step "corpus: $corpus"
python "$root/scripts/prepare_debian_translation.py" --out "$corpus" "${origin[@]}" \
    --vocab-size "$vocab_size" --seed "$seed"

preprocess "$corpus" "$binary" "$source_lang" "$target_lang"

trained=0
[[ ! -e $checkpoints/updates ]] || trained=$(<"$checkpoints/updates")
if ((trained >= updates)); then
    step "fairseq-train: $trained updates are done"
else
    step "fairseq-train: up to $updates updates in $checkpoints"
    fairseq-train "$binary" --user-dir "$user_dir" --task translation \
        --source-lang "$source_lang" --target-lang "$target_lang" \
        --arch updown_transformer_iwslt_de_en --share-all-embeddings "${updown[@]}" "${size[@]}" \
        "${batching[@]}" \
        --optimizer adam --adam-betas '(0.9, 0.98)' --weight-decay 0.0001 --clip-norm 1.0 \
        --lr-scheduler inverse_sqrt --warmup-init-lr 1e-7 \
        --criterion label_smoothed_cross_entropy --label-smoothing 0.1 \
        --max-update "$updates" --validate-interval-updates 500 --save-interval-updates 500 \
        --keep-interval-updates 1 --no-epoch-checkpoints --save-dir "$checkpoints" \
        --seed "$seed" --log-format simple --log-interval 50 "$@"
    echo "$updates" >"$checkpoints/updates"
fi

output=$work/test.$source_lang-$target_lang
if [[ -e $output.generate && ! $checkpoints/checkpoint_best.pt -nt $output.generate ]]; then
    step "fairseq-generate: $output.generate is up to date"
else
    step "fairseq-generate: $output.generate"
    fairseq-generate "$binary" --user-dir "$user_dir" --task translation \
        --source-lang "$source_lang" --target-lang "$target_lang" --gen-subset test \
        --path "$checkpoints/checkpoint_best.pt" --beam 5 --lenpen 1.0 --max-tokens 4096 \
        "${batching[@]}" --remove-bpe sentencepiece >"$output.partial"
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
