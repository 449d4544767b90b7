#!/usr/bin/env bash
# BART, fine-tuned on documents of up to 16k tokens; see README.md beside this file.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"

usage() {
    cat <<'EOF'
Usage: run.sh --bart DIR --encoder-json FILE --vocab-bpe FILE --corpus DIR [options]
       run.sh --tiny [options]
       (further fairseq-train options go after --)

Fine-tune BART to summarize long documents, summarize the test set, and score it. Every finished
step is skipped and training resumes when run again.

  --bart DIR            bart.large or bart.base as downloaded and unpacked: model.pt, dict.txt
  --size NAME           large (default) or base
  --encoder-json FILE   of GPT-2's byte pair encoding
  --vocab-bpe FILE      the same
  --corpus DIR          of updown-prepare (with --tiny also: of scripts/corpora/rfc.py, the default)
  --tiny                on CPUs: a small BART, trained here first by fairseq's denoising task
  --pretraining N       its updates (default: 1000)
  --tokens N            cut documents to N tokens (default: 16384; with --tiny 4096); up to 1024 it is
                        BART itself
  --scratch             do not start from BART
  --updates N           of the fine-tuning (default: 20000; with --tiny 400)
  --data DIR            everything (default: ./bart)
  --threads N           of a training on CPUs (default: 2)
  -h, --help            show this text
EOF
}

bart='' size='' encoder_json='' vocab_bpe='' corpus='' tiny=0 pretraining=1000 tokens='' scratch=0
updates='' data=bart threads=''
parse_options "--bart --size --encoder-json --vocab-bpe --corpus --pretraining --tokens --updates \
--data --threads" "--tiny --scratch" "$@"
if ((tiny)); then
    [[ -z $bart$encoder_json$vocab_bpe$size ]] || die "--tiny makes its own BART: leave out --bart," \
        "--size, --encoder-json and --vocab-bpe"
    [[ -z $corpus || -d $corpus ]] || die "--corpus $corpus is not there"
    size=base threads=${threads:-2} tokens=${tokens:-4096} updates=${updates:-400} corpus=${corpus:-$data/corpus}
else
    size=${size:-large}
    [[ -z $threads ]] || die "--threads is of trainings on CPUs: give it with --tiny"
    [[ $size == base || $size == large ]] || die "--size $size: choose base or large"
    for needed in bart encoder_json vocab_bpe corpus; do
        [[ -n ${!needed} ]] || die "--${needed//_/-} is missing; see --help"
    done
    for file in "$bart/model.pt" "$bart/dict.txt" "$encoder_json" "$vocab_bpe"; do
        [[ -f $file ]] || die "$file is not there"
    done
    tokens=${tokens:-16384} updates=${updates:-20000}
fi
whole_numbers tokens updates pretraining ${threads:+threads}

need_tools updown-score
work=$data/$tokens
((!scratch)) || work+=-scratch
claim_work "$data" "tiny $tiny" "size $size" "bart $bart" "corpus $corpus" "pretraining $pretraining"
claim_work "$work" "updates $updates" "extra ${rest[*]}"

# What differs between the two: text in pieces, the model's size, and how it is trained.
if ((tiny)); then
    if [[ -d $corpus ]]; then
        step "corpus: $corpus is there"
    else
        step "corpus: outlines of RFCs, in $corpus"
        python "$root/scripts/corpora/rfc.py" --out "$corpus" --target outline
    fi
    encoded=$corpus/spm dict=$corpus/spm/dict.txt bart=$data/denoising
    bpe=(--bpe sentencepiece --sentencepiece-model "$corpus/spm/spm.model")
    shape=(
        --encoder-layers 3 --decoder-layers 2 --encoder-embed-dim 256 --decoder-embed-dim 256
        --encoder-ffn-embed-dim 1024 --decoder-ffn-embed-dim 1024
        --encoder-attention-heads 4 --decoder-attention-heads 4
    )
    pooling=(--updown-pool-layers 2 --updown-memory-size 1024)
    training=(--cpu --updown-autocast bfloat16 --batch-size 4 --lr 5e-4 --warmup-updates 50
        --dropout 0 --attention-dropout 0)
    search=(--min-len 5 --max-len-b 400) device=(--cpu) scores=(--headings) interval=200
    export OMP_NUM_THREADS=$threads
else
    python "$(dirname "${BASH_SOURCE[0]}")/encode.py" "$corpus" --out "$data/bpe" \
        --encoder-json "$encoder_json" --vocab-bpe "$vocab_bpe"
    encoded=$data/bpe dict=$bart/dict.txt
    bpe=(--bpe gpt2 --gpt2-encoder-json "$encoder_json" --gpt2-vocab-bpe "$vocab_bpe")
    shape=() pooling=() device=() scores=() interval=2000
    training=(--bf16 --checkpoint-activations --batch-size 1 --update-freq 32 --lr 3e-5
        --warmup-updates 500 --dropout 0.1 --attention-dropout 0.1 --weight-decay 0.01)
    search=(--min-len 50 --max-len-b 300 --lenpen 2.0 --no-repeat-ngram-size 3)
fi

binarize "$data/bin" "$corpus" "" --source-lang src --target-lang tgt --srcdict "$dict" --tgtdict "$dict" \
    --trainpref "$encoded/train" --validpref "$encoded/valid" --testpref "$encoded/test"

if ((tiny && !scratch)) && [[ ! -e $bart/model.pt ]]; then
    binarize "$data/bin-denoising" "$corpus" "" --only-source --srcdict "$dict" \
        --trainpref "$encoded/train.src" --validpref "$encoded/valid.src"
    step "fairseq-train: a small BART, up to $pretraining updates in $bart"
    fairseq-train "$data/bin-denoising" --cpu --task denoising --arch bart_base "${shape[@]}" \
        --mask 0.3 --mask-length span-poisson --poisson-lambda 3.5 --replace-length 1 \
        --tokens-per-sample 512 --sample-break-mode none --skip-invalid-size-inputs-valid-test \
        --max-source-positions 1024 --max-target-positions 1024 --share-all-embeddings \
        --layernorm-embedding --dropout 0 --attention-dropout 0 \
        --optimizer adam --adam-betas '(0.9, 0.999)' --clip-norm 1.0 --lr 1e-3 \
        --lr-scheduler inverse_sqrt --warmup-updates 200 --criterion cross_entropy \
        --max-tokens 4096 --max-update "$pretraining" --disable-validation \
        --save-interval-updates 200 --keep-interval-updates 1 --no-epoch-checkpoints \
        --save-dir "$bart" --seed 1 --log-format simple --log-interval 25
    cp "$bart/checkpoint_last.pt" "$bart/model.pt.partial"
    mv "$bart/model.pt.partial" "$bart/model.pt"
fi

task=(--task summarization --prepend-bos --truncate-source --truncate-target
    --max-source-positions "$tokens" --max-target-positions 1024 "${bpe[@]}")
start=(--finetune-from-model "$bart/model.pt")
((!scratch)) || start=()
if [[ -e $work/trained ]]; then
    step "fairseq-train: $work/checkpoints are there"
else
    step "fairseq-train: up to $updates updates in $work/checkpoints"
    fairseq-train "$data/bin" --user-dir "$user_dir" "${task[@]}" "${start[@]}" \
        --arch "updown_transformer_bart_$size" "${shape[@]}" "${pooling[@]}" --share-all-embeddings \
        "${training[@]}" --optimizer adam --adam-betas '(0.9, 0.999)' --clip-norm 0.1 \
        --lr-scheduler polynomial_decay --total-num-update "$updates" --max-update "$updates" \
        --criterion label_smoothed_cross_entropy --label-smoothing 0.1 \
        --save-interval-updates "$interval" --validate-interval-updates "$interval" \
        --keep-interval-updates 1 --no-epoch-checkpoints --save-dir "$work/checkpoints" --seed 1 \
        --log-format simple --log-interval 25 "${rest[@]}"
    touch "$work/trained"
fi

if [[ -e $work/test.generate ]]; then
    step "fairseq-generate: $work/test.generate is there"
else
    step "fairseq-generate: $work/test.generate"
    fairseq-generate "$data/bin" --user-dir "$user_dir" "${task[@]}" "${device[@]}" \
        --gen-subset test --path "$work/checkpoints/checkpoint_best.pt" --batch-size 8 --beam 4 \
        "${search[@]}" --scoring rouge >"$work/test.partial"
    mv "$work/test.partial" "$work/test.generate"
fi

step "scores against $corpus/raw/test.tgt"
updown-score --generated "$work/test.generate" --references "$corpus/raw/test.tgt" \
    --sources "$corpus/raw/test.src" --examples 2 --json "$work/scores.json" "${scores[@]}"
