#!/usr/bin/env bash
# Data, measurements, table and picture of all encoder mixers; see README.md beside this file.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"

usage() {
    cat <<'EOF'
Usage: run.sh [options] [-- options of scripts/benchmarks/mixers.py]

Compare the encoder mixers of --updown-mixer: cost, recall, summaries, translation. Data that is
missing is made first; every finished step and row is skipped when run again.

  --work DIR         everything is written here (default: ./comparison)
  --sections "..."   some of cost recall summaries translation (default: all)
  --summaries DIR    data of fairseq-preprocess, such as other/summaries/data-bin
                     (default: docstrings, made in the work directory)
  --translation DIR  work directory of examples/translation/run.sh, such as translation-de-en
                     (default: made in the work directory)
  -h, --help         show this text

  run.sh -- --seeds 1                 one seed; a second run.sh with --seeds 2 may run beside it
  run.sh -- --mixers full flow luna=64
  run.sh -- --table                   print what was measured so far
EOF
}

work=comparison sections='cost recall summaries translation' summaries='' translation=''
parse_options "--work --sections --summaries --translation" "" "$@"
for section in $sections; do
    case $section in
        cost | recall | summaries | translation) ;;
        *) die "--sections $section: choose among cost, recall, summaries, translation" ;;
    esac
done

need_tools
mkdir -p "$work"

# What was measured is printed without data, and without the picture.
measuring=1
[[ " ${rest[*]} " != *" --table "* ]] || measuring=0

# Two calls of this script share the data: the second waits until the first has made it.
exec 9>"$work/data.lock"
flock 9

if [[ " $sections " == *" summaries "* && -z $summaries ]] && ((measuring)); then
    summaries=$work/summaries/data-bin
    if [[ ! -d $summaries ]]; then
        step "corpus of summaries: docstrings of the installed packages"
        python "$root/scripts/corpora/docstrings.py" --out "$work/summaries/corpus"
        preprocess "$work/summaries/corpus" "$summaries" src tgt
    fi
fi
if [[ " $sections " == *" translation "* && -z $translation ]] && ((measuring)); then
    translation=$work/translation
    if [[ ! -d $translation/data-bin ]]; then
        step "corpus of translations: German to English, Debian's package descriptions"
        python "$root/scripts/corpora/debian_translation.py" --out "$translation/corpus" \
            --lang de --vocab-size 8000 --seed 1
        preprocess "$translation/corpus" "$translation/data-bin" de en
    fi
fi
exec 9>&-

drawing=()
if [[ " $sections " == *" cost "* && $sections == *" "* ]] && ((measuring)); then
    drawing=(--picture "$work/mixers.svg")
fi
step "comparison: rows in $work/mixers.json"
# shellcheck disable=SC2086  # one word a section
python "$root/scripts/benchmarks/mixers.py" --sections $sections --work "$work" \
    ${summaries:+--summaries "$summaries"} ${translation:+--translation "$translation"} \
    "${drawing[@]}" "${rest[@]}"
