#!/usr/bin/env bash
# Does reading the whole document pay? Outlines of RFCs, every system for the same time; see README.md
# beside this file.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"

usage() {
    cat <<'EOF'
Usage: run.sh [options] [-- options of scripts/benchmarks/quality.py]

Build the corpus, train one start for all systems, train each system from it on whole documents for
the same time, and print which headings they find, and where. Every finished step is skipped and
training resumes when run again.

  --data DIR        everything (default: ./outline)
  --tokens N        cut documents to N tokens (default: 4096; also run: 8192, 16384)
  --minutes N       of each system (default: 20)
  --updates N       of each system, where they fit into its minutes (default: as many as do)
  --spans N         updates of the start on damaged spans (default: 1600)
  --windows N       updates of the start on windows of 450 words (default: 1000)
  --threads N       of the start, and of each system (default: 1)
  --part N          generate for every Nth document of the test set (default: 1)
  -h, --help        show this text

After --: --systems NAME ..., --seeds N ..., --jobs N, ...
EOF
}

data=outline tokens=4096 minutes=20 updates= spans=1600 windows=1000 threads=1 part=1
valued="--data --tokens --minutes --updates --spans --windows --threads --part"
parse_options "$valued" "" "$@"
whole_numbers tokens minutes spans windows threads part ${updates:+updates}

[[ " ${rest[*]} " != *" --test-part"* ]] || die "give --part N, before the --, in place of --test-part"

need_tools updown-export updown-score
corpus=$data/corpus
claim_work "$data" "spans $spans" "windows $windows"

if [[ -d $corpus ]]; then
    step "corpus: $corpus is there"
else
    step "corpus: outlines of RFCs, in $corpus"
    python "$root/scripts/corpora/rfc.py" --out "$corpus" --target outline --windows 450 --denoise
fi
preprocess "$corpus" "$data/bin/whole" src tgt
preprocess "$corpus" "$data/bin/450" src tgt -450
preprocess "$corpus" "$data/bin/denoised" src tgt -denoised

# start BINARY UPDATES NAME OPTION...: trains a stock Transformer, which is what updown_transformer is
# while all fits one block; bfloat16 makes it faster where the processor has it.
start() {
    local binary=$1 updates=$2 folder=$data/start/$3
    shift 3
    if [[ -e $folder/trained ]]; then
        step "fairseq-train: $folder is there"
        return
    fi
    step "fairseq-train: up to $updates updates in $folder"
    OMP_NUM_THREADS=$threads fairseq-train "$binary" --user-dir "$user_dir" --cpu \
        --task summarization --truncate-source --truncate-target \
        --max-source-positions 1024 --max-target-positions 512 \
        --arch updown_transformer --updown-slots 0 --updown-block-size 1024 \
        --updown-decoder-slots 0 --updown-decoder-block-size 512 --updown-autocast bfloat16 \
        --share-all-embeddings --encoder-normalize-before --decoder-normalize-before \
        --encoder-layers 3 --decoder-layers 2 --encoder-embed-dim 256 --decoder-embed-dim 256 \
        --encoder-ffn-embed-dim 1024 --decoder-ffn-embed-dim 1024 \
        --encoder-attention-heads 4 --decoder-attention-heads 4 --dropout 0 \
        --optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 1.0 \
        --lr-scheduler inverse_sqrt --warmup-init-lr 1e-7 \
        --criterion label_smoothed_cross_entropy --label-smoothing 0.1 --disable-validation \
        --max-update "$updates" --save-interval-updates 200 \
        --keep-interval-updates 1 --no-epoch-checkpoints --save-dir "$folder" --seed 1 \
        --log-format simple --log-interval 25 "$@"
    touch "$folder/trained"
}
start "$data/bin/denoised" "$spans" spans --max-tokens 2048 --lr 0.0015 --warmup-updates 400
start "$data/bin/450" "$windows" windows --max-tokens 4096 --lr 0.001 --warmup-updates 100 \
    --finetune-from-model "$data/start/spans/checkpoint_last.pt"
first_model=$data/start/start.pt
[[ -e $first_model ]] ||
    updown-export "$data/start/windows/checkpoint_last.pt" --to fairseq "$first_model"

# Every system on its own, and after that all of them together.
runs=$data/systems-$tokens-$minutes${updates:+-$updates}
if [[ $updates ]]; then
    [[ " ${rest[*]} " == *" -- "* ]] || rest+=(--)
    rest+=(--max-update "$updates")
fi
step "the systems, $minutes minutes each${updates:+ or $updates updates}, in $runs"
python "$root/scripts/benchmarks/quality.py" "$data/bin/whole" --out "$runs" --size outline \
    --source-tokens "$tokens" --minutes "$minutes" --start "$first_model" \
    --threads "$threads" --test-part "$part" "${rest[@]}"

step "headings found, and where"
for side in src tgt; do
    awk -v n="$part" '(NR - 1) % n == 0' "$corpus/raw/test.$side" >"$runs/test.$side"
done
others=() first=
tested=
((part == 1)) || tested=-test-part-$part # as quality.py names it
for log in "$runs"/*/generate"$tested".log; do
    [[ -e ${log%/*}/result$tested.json ]] || continue # of a run that has not ended
    name=$(basename "$(dirname "$log")")
    if [[ -z $first ]]; then
        first=$log
        step "'model' is $name"
    else
        others+=(--other "$name=$log")
    fi
done
updown-score --headings --generated "$first" "${others[@]}" --references "$runs/test.tgt" \
    --sources "$runs/test.src" --sentencepiece-model "$corpus/spm/spm.model" \
    --examples 2 --json "$runs/scores.json" --picture "$runs/recall.png"
