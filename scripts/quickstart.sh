#!/usr/bin/env bash
# From nothing to a scored model of long documents, on two CPU cores, with no download but packages:
# environment, corpus (pages of the installed libraries' documentation, thousands of tokens -> their
# contents), training, generation, ROUGE beside a lead baseline, a chart of where in a page its
# headings are found, an HTML page that shows what one was read from. Run it again and it goes on
# where it stopped.
# Usage: bash scripts/quickstart.sh [--work DIR] [--updates N]
#   --work DIR    where corpus, checkpoints and results go (default: work/quickstart)
#   --updates N   training updates (default: 600); raise it later to train on
set -euo pipefail

work=work/quickstart updates=600
while [ $# -gt 0 ]; do
  case "$1" in
    --work) work=$(realpath -m -- "${2:?--work needs a directory}"); shift 2 ;;
    --updates) updates=${2:?--updates needs a number}; shift 2 ;;
    -h | --help) sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) echo "quickstart.sh: unknown argument '$1'; try --help" >&2; exit 2 ;;
  esac
done
case "$updates" in
  '' | 0* | *[!0-9]*) echo "quickstart.sh: --updates '$updates' must be a whole number of at least 1" >&2; exit 2 ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ ! -e "$work/made-of.sha256" ] && [ -n "$(ls -A "$work" 2>/dev/null)" ]; then
  echo "quickstart.sh: $work has files that this script did not make: give another --work" >&2
  exit 2
fi

say() { printf '\n[quickstart %4d s] %s\n' "$SECONDS" "$*"; }

say "1/6 environment"
bash scripts/environment.sh
bin=$PWD/.venv/bin
plugin=$("$bin/python" -m fairseq_updown)
export PYTHONWARNINGS=ignore
mkdir -p "$work"
touch "$work/made-of.sha256" # the folder is ours

say "2/6 corpus: documentation of the installed packages"
report=$work/corpus/report.json
if [ -e "$report" ] && ! grep -q '"target": "contents"' "$report"; then
  echo "quickstart.sh: $work is of an older version: remove it, or give another --work" >&2
  exit 2
fi
"$bin/python" scripts/corpora/docstrings.py --target contents --out "$work/corpus"

# Blocks of 256 tokens see eight slots of every other block, and after the first layer the sequence
# is pooled to a quarter.
model=(
  --arch updown_transformer_tiny --share-all-embeddings
  --encoder-layers 3 --encoder-embed-dim 192 --encoder-ffn-embed-dim 768
  --encoder-attention-heads 4 --encoder-normalize-before
  --decoder-layers 2 --decoder-embed-dim 192 --decoder-ffn-embed-dim 768
  --decoder-attention-heads 4 --decoder-normalize-before
  --updown-block-size 256 --updown-slots 8 --updown-pool-layers 1 --updown-memory-size 512
  --updown-decoder-block-size 256 --updown-copy --updown-autocast bfloat16
  --max-source-positions 4096 --max-target-positions 512
)

# Later steps build on the corpus and the model; where one of them is new, they start anew.
made_of=$({ cat "$report"; echo "${model[@]}"; } | sha256sum | cut -d' ' -f1)
if [ "$(cat "$work/made-of.sha256" 2>/dev/null)" != "$made_of" ]; then
  rm -rf "$work/bin" "$work/checkpoints" "$work/updates" "$work"/generated-*.txt
  echo "$made_of" >"$work/made-of.sha256"
fi

before=$(cat "$work/updates" 2>/dev/null || echo 0)
if [ "$before" -gt "$updates" ]; then
  echo "quickstart.sh: the training in $work is of $before updates: give --updates $before or" \
    "more, or another --work" >&2
  exit 2
fi
echo "$updates" >"$work/updates"

say "3/6 fairseq-preprocess"
if [ ! -d "$work/bin" ]; then
  rm -rf "$work/bin.partial"
  "$bin/fairseq-preprocess" --source-lang src --target-lang tgt --joined-dictionary \
    --srcdict "$work/corpus/spm/dict.txt" --trainpref "$work/corpus/spm/train" \
    --validpref "$work/corpus/spm/valid" --testpref "$work/corpus/spm/test" \
    --workers 2 --destdir "$work/bin.partial" >"$work/preprocess.log" 2>&1 ||
    { tail -n 5 "$work/preprocess.log" >&2; exit 1; }
  grep -E 'sents|Wrote' "$work/preprocess.log"
  cp "$work/corpus/spm/spm.model" "$work/bin.partial" # where updown-summarize looks for it
  mv "$work/bin.partial" "$work/bin"
fi

say "4/6 fairseq-train, $updates updates"
generated=$work/generated-$updates.txt
[ -f "$generated" ] || # fairseq would take one more update than --max-update at every rerun
  "$bin/fairseq-train" "$work/bin" --user-dir "$plugin" \
  --task summarization --truncate-source --truncate-target \
  "${model[@]}" \
  --optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 1.0 \
  --lr 0.002 --lr-scheduler polynomial_decay --warmup-updates 100 --total-num-update "$updates" \
  --criterion cross_entropy --dropout 0 \
  --max-tokens 4096 --max-update "$updates" --cpu --seed 1 \
  --disable-validation --save-interval-updates 100 --keep-interval-updates 1 \
  --no-epoch-checkpoints --log-format simple --log-interval 25 \
  --save-dir "$work/checkpoints" 2>&1 | tee -a "$work/train.log" |
  grep --line-buffered -E 'train_inner|Loaded checkpoint|done training|Error' |
  sed -u -E 's/^.*\| train_inner \| /  /; s/, (bsz|gnorm|clip|train_wall|wpb|ups)=[^,]*//g' ||
  { tail -n 5 "$work/train.log" >&2; exit 1; }

say "5/6 fairseq-generate on the test set"
# What is quoted is nearly certain, so that more beams only end early, and headings begin alike.
search=(--beam 1 --lenpen 1 --min-len 1 --max-len-b 500 --no-repeat-ngram-size 0)
if [ ! -f "$generated" ]; then
  "$bin/fairseq-generate" "$work/bin" --user-dir "$plugin" \
    --task summarization --truncate-source --truncate-target \
    --path "$work/checkpoints/checkpoint_last.pt" --cpu --max-tokens 16384 \
    --max-source-positions 4096 --max-target-positions 512 \
    "${search[@]}" --remove-bpe sentencepiece >"$generated.partial" 2>"$work/generate.log" ||
    { tail -n 5 "$work/generate.log" >&2; exit 1; }
  mv "$generated.partial" "$generated"
fi
grep -E '^Generate|Translated' "$generated" "$work/generate.log" -h || true

say "6/6 scores beside the lead baseline, three examples, a chart, and an HTML page of the second"
sources=$work/corpus/raw/test.src
"$bin/updown-score" --headings --generated "$generated" \
  --references "$work/corpus/raw/test.tgt" --sources "$sources" \
  --sentencepiece-model "$work/bin/spm.model" --examples 3 \
  --json "$work/scores-$updates.json" --picture "$work/recall.png"
sed -n "$(($(wc -l <"$sources") / 2 + 1))p" "$sources" >"$work/document.txt"
"$bin/updown-highlight" --checkpoint "$work/checkpoints/checkpoint_last.pt" --data "$work/bin" \
  --long truncate "${search[@]}" --out "$work/highlight.html" "$work/document.txt"

say "done; model in $work/checkpoints, scores in $work/scores-$updates.json;
  which headings were found, by where they stand: $work/recall.png;
  what the words of one page's contents were read and copied from: $work/highlight.html; now try
  '$bin/updown-summarize' --long truncate ${search[*]} --data '$work/bin' \\
    --checkpoint '$work/checkpoints/checkpoint_last.pt' '$work/document.txt'"
