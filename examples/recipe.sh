# Steps that the recipes share; each run.sh sources this file.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

die() {
    echo "run.sh: $*" >&2
    exit 2
}

step() {
    echo "== $*" >&2
}

# parse_options VALUED SWITCHES ARGUMENT...: sets the variable of each option that is given
# (--vocab-size N: vocab_size=N; a switch: 1), shows --help, and leaves in the array `rest` what
# stands after --.
parse_options() {
    local valued=" $1 " switches=" $2 " name
    shift 2
    rest=()
    while (($#)); do
        case $1 in
            -h | --help)
                usage
                exit 0
                ;;
            --)
                shift
                rest=("$@")
                return
                ;;
        esac
        name=${1#--}
        name=${name//-/_}
        if [[ $valued == *" $1 "* ]]; then
            (($# > 1)) || die "$1 needs a value; see --help"
            printf -v "$name" '%s' "$2"
            shift
        elif [[ $1 && $switches == *" $1 "* ]]; then
            printf -v "$name" 1
        else
            die "unknown option $1; see --help (options of the program that this runs go after --)"
        fi
        shift
    done
}

# whole_numbers NAME...: the options of these variables' names must be numbers from 1 on.
whole_numbers() {
    local name
    for name; do
        [[ ${!name} =~ ^[1-9][0-9]*$ ]] ||
            die "--${name//_/-} takes a number from 1 on, not '${!name}'"
    done
}

# words FILE: the words of a file of options, one a line; quotes hold words together, lines that
# begin with # are comments.
words() {
    grep -v '^#' "$1" | xargs printf '%s\n'
}

# need_tools TOOL...: the programs must be there, and so must the plugin; sets user_dir.
need_tools() {
    local tool install
    install="install all with: bash '$root/scripts/environment.sh' && source '$root/.venv/bin/activate'"
    for tool in python fairseq-preprocess fairseq-train fairseq-generate "$@"; do
        command -v "$tool" >/dev/null ||
            die "$tool is not on PATH; $install"
    done
    user_dir=$(python -m fairseq_updown) ||
        die "python cannot import fairseq_updown; $install"
}

# claim_work DIR LINE...: a work directory belongs to one set of options.
claim_work() {
    local work=$1 settings
    shift
    settings=$(printf '%s\n' "$@")
    mkdir -p "$work"
    if [[ -e $work/settings && $(<"$work/settings") != "$settings" ]]; then
        diff "$work/settings" - <<<"$settings" >&2 || true
        die "$work was made with other options (above); choose another folder or remove it"
    fi
    printf '%s\n' "$settings" >"$work/settings"
}

# binarize BINARY CORPUS BESIDE OPTION...: fairseq-preprocess, once, and a file beside, if any. Of two
# runs that share BINARY the second waits; one with another corpus is refused.
binarize() {
    local binary=$1 corpus=$2 beside=$3 lock made_from
    shift 3
    [[ -e $corpus/report.json ]] || die "$corpus has no report.json: make it with updown-prepare"
    made_from=$(sha256sum <"$corpus/report.json")
    mkdir -p "$(dirname "$binary")"
    exec {lock}>"$binary.lock"
    flock "$lock"
    if [[ -d $binary ]]; then
        [[ ! -e $binary/made-from || $(<"$binary/made-from") == "$made_from" ]] ||
            die "$binary was made from another corpus than $corpus is now; choose another --data" \
                "or remove it, and what was trained on it"
        step "fairseq-preprocess: $binary is there"
    else
        step "fairseq-preprocess: $binary"
        rm -rf "$binary.partial"
        fairseq-preprocess "$@" --destdir "$binary.partial" --workers 2
        [[ -z $beside ]] || cp "$beside" "$binary.partial"
        echo "$made_from" >"$binary.partial/made-from"
        mv -T "$binary.partial" "$binary"
    fi
    exec {lock}>&-
}

# preprocess CORPUS BINARY SOURCE TARGET [KIND]: binarizes with the corpus's own dictionary; KIND: of
# the texts, such as -450 for train-450.
preprocess() {
    local corpus=$1 binary=$2 kind=${5:-}
    # updown-summarize looks for the model in the data's folder
    binarize "$binary" "$corpus" "$corpus/spm/spm.model" --source-lang "$3" --target-lang "$4" --joined-dictionary \
        --trainpref "$corpus/spm/train$kind" --validpref "$corpus/spm/valid$kind" \
        --testpref "$corpus/spm/test$kind" --srcdict "$corpus/spm/dict.txt"
}
