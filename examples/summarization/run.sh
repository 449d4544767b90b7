#!/usr/bin/env bash
# Data, training, summaries and ROUGE for long documents; see README.md beside this file.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"

usage() {
    cat <<'EOF'
Usage: run.sh [options] [-- further fairseq-train options]

Train a system on long documents and their summaries, summarize the test set and score it with
ROUGE. Every finished step is skipped and training resumes when run again.

  --system NAME     arxiv (default), pyramidion, blockwise: updown_transformer_NAME;
                    transformer: fairseq's own, its sources cut to 1,024 tokens, or --tokens
  --tokens N        cut sources to N tokens (default: 4096, of transformer 1024; also run: 8192, 16384)
  --corpus DIR      a corpus of updown-prepare (default: one of RFCs, made by
                    scripts/corpora/rfc.py in the data directory)
  --data DIR        corpus and data-bin, shared by all runs (default: ./summarization)
  --work DIR        checkpoints and summaries (default: DATA/SYSTEM-TOKENS)
  --updates N       train until this many updates (default: 2000; 100000 with --gpu)
  --seed N          training seed (default: 1)
  --gpu             base size in bf16 instead of the small model for CPUs
  -h, --help        show this text
EOF
}

system=arxiv tokens='' corpus='' data=summarization work='' updates='' seed=1 gpu=0
parse_options "--system --tokens --corpus --data --work --updates --seed" "--gpu" "$@"

[[ $seed =~ ^[0-9]+$ ]] || die "--seed takes a number, not '$seed'"
case $system in
    arxiv | pyramidion | blockwise) arch=updown_transformer_$system tokens=${tokens:-4096} ;;
    transformer) arch=transformer tokens=${tokens:-1024} ;;
    *) die "--system $system: choose arxiv, pyramidion, blockwise or transformer" ;;
esac
whole_numbers tokens ${updates:+updates}

need_tools

# Batches are counted in documents, so that all systems see the same ones in each update.
if ((gpu)); then
    size=(--bf16 --checkpoint-activations --batch-size 4 --update-freq 8
        --lr 5e-4 --warmup-updates 5000 --dropout 0.1 --attention-dropout 0.1 --weight-decay 0.1)
    device=() updates=${updates:-100000} interval=2000
else
    size=(
        --encoder-layers 4 --decoder-layers 2
        --encoder-embed-dim 128 --decoder-embed-dim 128
        --encoder-ffn-embed-dim 512 --decoder-ffn-embed-dim 512
        --encoder-attention-heads 4 --decoder-attention-heads 4
        --batch-size 2 --update-freq 2 --lr 2e-3 --warmup-updates 300 --dropout 0.1
    )
    device=(--cpu) updates=${updates:-2000} interval=250
    [[ $system == transformer ]] || size+=(--updown-autocast bfloat16) # where it is faster
fi

[[ -z $corpus || -d $corpus ]] || die "--corpus $corpus is not there"
work=${work:-$data/$system-$tokens}
corpus=${corpus:-$data/corpus}
binary=$data/data-bin
checkpoints=$work/checkpoints
mkdir -p "$data"

# Only the number of updates may grow.
claim_work "$work" "system $system" "tokens $tokens" "corpus $corpus" "seed $seed" \
    "gpu $gpu" "extra ${rest[*]}"

if [[ -d $corpus ]]; then
    step "corpus: $corpus is there"
else
    step "corpus: RFCs, in $corpus"
    python "$root/scripts/corpora/rfc.py" --out "$corpus"
fi

preprocess "$corpus" "$binary" src tgt

# Longer sources and summaries are cut, and the log says how many; none is left out.
task=(--task summarization --truncate-source --truncate-target
    --max-source-positions "$tokens" --max-target-positions 512)
# Against degenerate output: see README.md.
min_len=30 max_len=200 no_repeat=3
validation=$(printf '{"beam": 1, "min_len": %d, "max_len_b": %d, "no_repeat_ngram_size": %d}' \
    $min_len $max_len $no_repeat)

trained=0
[[ ! -e $checkpoints/updates ]] || trained=$(<"$checkpoints/updates")
if ((trained >= updates)); then
    step "fairseq-train: $trained updates are done"
else
    step "fairseq-train: up to $updates updates in $checkpoints"
    fairseq-train "$binary" --user-dir "$user_dir" "${task[@]}" "${device[@]}" \
        --arch "$arch" --share-all-embeddings \
        --encoder-normalize-before --decoder-normalize-before "${size[@]}" \
        --optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 1.0 \
        --lr-scheduler inverse_sqrt --warmup-init-lr 1e-7 \
        --criterion label_smoothed_cross_entropy --label-smoothing 0.1 \
        --eval-rouge --eval-rouge-args "$validation" --batch-size-valid 8 \
        --best-checkpoint-metric rougeL --maximize-best-checkpoint-metric \
        --max-update "$updates" \
        --validate-interval-updates "$interval" --save-interval-updates "$interval" \
        --keep-interval-updates 1 --no-epoch-checkpoints --save-dir "$checkpoints" \
        --seed "$seed" --log-format simple --log-interval 25 "${rest[@]}"
    echo "$updates" >"$checkpoints/updates"
fi

output=$work/test
if [[ -e $output.generate && ! $checkpoints/checkpoint_best.pt -nt $output.generate ]]; then
    step "fairseq-generate: $output.generate is up to date"
else
    step "fairseq-generate: $output.generate"
    fairseq-generate "$binary" --user-dir "$user_dir" "${task[@]}" "${device[@]}" \
        --gen-subset test --path "$checkpoints/checkpoint_best.pt" --batch-size 8 \
        --beam 4 --lenpen 1.0 --min-len $min_len --max-len-b $max_len \
        --no-repeat-ngram-size $no_repeat --remove-bpe sentencepiece \
        --scoring rouge >"$output.partial"
    mv "$output.partial" "$output.generate"
fi

step "scores against $corpus/raw/test.tgt, beside the lead"
updown-score --generated "$output.generate" \
    --references "$corpus/raw/test.tgt" --sources "$corpus/raw/test.src" \
    --examples 3 --json "$output.scores.json"
