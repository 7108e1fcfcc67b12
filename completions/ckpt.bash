# bash completion for ckpt. Made by `make completions` from completions/templates: edit those.

# What a selector may become. Plain shell that bash, zsh and fish share: globs alone, and no other program is started.

# Whether anything within three levels of a directory looks like a checkpoint: _ckpt_holds DIR
_ckpt_holds() {
    for file in "$1"/*.pt "$1"/*.bin "$1"/*.safetensors "$1"/*.ckpt "$1"/*.pth "$1"/*/*.pt "$1"/*/*.bin "$1"/*/*.safetensors "$1"/*/*.ckpt "$1"/*/*.pth "$1"/*/*/*.pt "$1"/*/*/*.bin "$1"/*/*/*.safetensors "$1"/*/*/*.ckpt "$1"/*/*/*.pth \
        "$1"/.metadata "$1"/*/.metadata "$1"/*/*/.metadata; do
        [ ! -e "$file" ] || return 0
    done
    return 1
}

# The root that `ckpt` would take, or nothing where its settings name one: _ckpt_root [DIR]
_ckpt_root() (
    [ -z "${ZSH_VERSION-}" ] || emulate sh
    for dir in "${1-}" "${CKPT_ROOT-}"; do
        case $dir in '~' | '~/'*) dir=$HOME${dir#\~} ;; esac
        [ -z "$dir" ] || { printf '%s\n' "${dir%/}"; return; }
    done
    names_root() { # FILE, the table that counts
        [ -r "$1" ] || return 1
        table=
        while IFS= read -r line || [ -n "$line" ]; do
            case $line in '['*) table=$line ;; esac
            [ "$table" = "$2" ] || continue
            case $line in root*=*) return 0 ;; esac
        done <"$1"
        return 1
    }
    above=$PWD
    while names_root "$above/ckpt.toml" '' || names_root "$above/pyproject.toml" '[tool.ckpt]' && return; [ -n "$above" ]; do
        above=${above%/*}
    done
    for dir in "${XDG_CONFIG_HOME:-$HOME/.config}" "$HOME/Library/Application Support"; do
        names_root "$dir/ckpt/ckpt.toml" '' && return
    done
    if _ckpt_holds "$PWD"; then printf '%s\n' "$PWD"; else printf '%s\n' "${NANOCHAT_BASE_DIR:-$HOME/.cache/nanochat}"; fi
)

# What WORD may become, a line each, a folder with `/` at its end: _ckpt_refs ROOT WORD
_ckpt_refs() (
    [ -z "${ZSH_VERSION-}" ] || emulate sh
    root=$1 word=$2 own=${1##*/}
    case $word in */*) above=${word%/*} ;; *) above= ;; esac
    first=${above%%/*} sources='base:base_checkpoints mid:mid_checkpoints sft:chatsft_checkpoints sft:sft_checkpoints rl:chatrl_checkpoints'
    # The directories that ABOVE stands for, a line each.
    places() {
        [ ! -d "$root/$above" ] || printf '%s\n' "$root/$above"
        [ -z "$above" ] || [ "$first" != "$own" ] || printf '%s\n' "$root${above#"$own"}"
        for pair in $sources; do
            [ ! -d "$root/${pair#*:}/$above" ] || printf '%s\n' "$root/${pair#*:}/$above"
            [ "$first" = "${pair%%:*}" ] || continue
            [ ! -d "$root/${pair#*:}${above#"$first"}" ] || printf '%s\n' "$root/${pair#*:}${above#"$first"}"
            [ "$own" != "${pair#*:}" ] || printf '%s\n' "$root${above#"$first"}"
        done
    }
    fits() { case ${above:+$above/}$1 in "$word"*) printf '%s\n' "${above:+$above/}$1" ;; esac; }
    if [ -z "$above" ]; then
        for pair in $sources; do [ ! -d "$root/${pair#*:}" ] || fits "${pair%%:*}/"; done
    fi
    places | while IFS= read -r place; do
        steps=
        for entry in "$place"/*/; do
            name=${entry%/} && name=${name##*/}
            case " $sources eval_bundle report tokenizer " in *[\ :]"$name "*) continue ;; esac
            case $name in
                '*' | base_data*) ;;
                epoch_[0-9]* | step_[0-9]* | dist_epoch_[0-9]* | checkpoint-[0-9]*) steps=1 && fits "$name" ;;
                *) case ${above:+$above/}$name/ in "$word"*) ! _ckpt_holds "$place/$name" || fits "$name/" ;; esac ;;
            esac
        done
        [ -n "$above" ] || continue
        for entry in "$place"/model_[0-9]*.pt "$place"/checkpoint_[0-9]*.bin "$place"/checkpoint_[0-9]*.pt "$place"/*.ckpt; do
            [ -e "$entry" ] || continue
            name=${entry##*/} && name=${name%.*} && steps=1
            case $entry in
                *.ckpt) fits "$name" ;;
                *) step=${name#*_} && step=${step#"${step%%[!0]*}"} && case $step in *[!0-9]*) ;; *) fits "${step:-0}" ;; esac ;;
            esac
        done
        [ -z "$steps" ] || { fits latest; fits best; }
    done
)

_ckpt() {
    local cur=${COMP_WORDS[COMP_CWORD]} word option= command= places=0 root= offer= quote= line i
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if [[ $word == '=' ]]; then # bash takes --root=DIR for three words
            continue
        elif [[ -n $option ]]; then
            [[ $option != --root ]] || root=$(_ckpt_plain "$word")
            option=
        elif [[ $word == -* ]]; then
            case ' --after --before --config --device --dtype --family --field --filter --format --id --jobs --keep --keep-best --keep-every --keep-last --keep-step --keep-within --key --limit --max-shard-size --max-size --metric --model --model-tag --output --part --phase --policy --root --save-logits --set --sort --source --state --step --tag --timeout --to --tokens --unset -g -i -o -s ' in *" $word "*) option=$word ;; esac
        elif [[ -z $command || $command == inspect ]]; then
            command=${command:+$command }$word
        else
            places=$((places + 1))
        fi
    done
    [[ $cur != '=' ]] || cur=
    case $cur in [\'\"]*) quote=${cur:0:1} ;; esac
    cur=$(_ckpt_plain "$cur")
    if [[ -n $option ]]; then
        case "$command $option" in
            *' --root') offer='@dir' ;;
            *' -i'|*' --source') offer='base mid sft rl' ;;
            *' -g'|*' --tag'|*' --model-tag') offer='@tag' ;;
            *' -s'|*' --step') offer='latest best' ;;
            *' --state') offer='complete incomplete in-progress' ;;
            'list --sort') offer='run step size age metric' ;;
            'inspect tensors --sort') offer='file name bytes' ;;
            'list --format'|'latest --format'|'inspect tensors --format'|'verify --format'|'patch-config --format'|'prune --format'|'convert --format') offer='table plain json name' ;;
            'inspect meta --format'|'inspect optim --format'|'inspect diff --format'|'load-test --format'|'demo --format') offer='table plain json' ;;
            *' --field') offer='path dir ref source tag step' ;;
            'inspect tensors --part'|'convert --part') offer='model optimizer adapter @file' ;;
            'inspect optim --part') offer='@file' ;;
            *' --device') offer='auto cpu cuda mps meta' ;;
            *' --dtype') offer='bf16 fp16 fp32 fp64' ;;
            *' --phase') offer='eval train' ;;
            *' --save-logits') offer='@file' ;;
            *' --family') offer='gpt2-nano-gpt gpt2-nanogpt gpt2-build-nanogpt nanochat-v1 nanochat-lambdas nanochat-window nanochat-ve32 nanochat-engram nanochat-ve12 nanochat-smear nanochat-moe3' ;;
            *' --config') offer='@file' ;;
            *' --to') offer='safetensors pt hf torchtune meta' ;;
            *' -o'|*' --output') offer='@file' ;;
        esac
    elif [[ $cur == -* ]]; then
        case $command in
            '') offer='--version -h --help' ;;
            'list') offer='--root -i --source -g --tag --model-tag -s --step --state --sort --reverse --before --after --metric --limit --trash --format --json -q --quiet -h --help' ;;
            'latest') offer='--root -i --source -g --tag --model-tag -s --step --field --best --metric --before --resumable --any-state --format --json -q --quiet -h --help' ;;
            'inspect') offer='-h --help' ;;
            'inspect meta') offer='--root -i --source -g --tag --model-tag -s --step --key --format --json -h --help' ;;
            'inspect tensors') offer='--root -i --source -g --tag --model-tag -s --step --part --filter --sort --tree --stats --hash --values --format --json -q --quiet -h --help' ;;
            'inspect optim') offer='--root -i --source -g --tag --model-tag -s --step --part --format --json -h --help' ;;
            'inspect diff') offer='--root -i --source -g --tag --model-tag -s --step --values --exit-code --format --json -h --help' ;;
            'verify') offer='--root -i --source -g --tag --model-tag -s --step --record --force --strict --jobs --format --json -q --quiet -h --help' ;;
            'load-test') offer='--root -i --source -g --tag --model-tag -s --step --device --dtype --phase --tokens --save-logits --force --set --family --model --config --timeout --format --json -h --help' ;;
            'patch-config') offer='--root -i --source -g --tag --model-tag -s --step --set --unset --all --check --undo --force -n --dry-run -y --yes --format --json -q --quiet -h --help' ;;
            'prune') offer='--root -i --source -g --tag --model-tag --keep --keep-last --keep-every --keep-best --keep-within --keep-step --max-size --policy --metric --drop-unmeasured --optimizer-only --incomplete --allow-empty --trust-steps --trash --undo --purge --id -n --dry-run -y --yes --format --json -q --quiet -h --help' ;;
            'convert') offer='--root -i --source -g --tag --model-tag -s --step --to -o --output --dtype --max-shard-size --part --config --all --keep-going --force -n --dry-run --format --json -q --quiet -h --help' ;;
            'demo') offer='--format --json -h --help' ;;
        esac
    else
        case $command in
            '') offer='list latest inspect verify load-test patch-config prune convert demo' ;;
            'list') offer='@ref' ;;
            'latest') offer='@ref' ;;
            'inspect') offer='meta tensors optim diff' ;;
            'inspect meta') offer='@ref' ;;
            'inspect tensors') offer='@ref' ;;
            'inspect optim') offer='@ref' ;;
            'inspect diff') offer='@ref' ;;
            'verify') offer='@ref' ;;
            'load-test') offer='@ref' ;;
            'patch-config') offer='@ref' ;;
            'prune') offer='@ref' ;;
            'convert') offer='@ref' ;;
            'demo') offer='@dir' ;;
        esac
    fi
    COMPREPLY=()
    compopt -o nospace 2>/dev/null # bash 3 has no compopt, and a blank after a folder then
    for word in $offer; do
        case $word in
            @file | @dir) compopt +o nospace -o filenames 2>/dev/null; return ;; # readline's own
            @ref | @tag)
                case $cur in /* | ./* | ../* | '~'*) compopt +o nospace -o filenames 2>/dev/null; return ;; esac
                root=$(_ckpt_root "$root")
                [[ -n $root ]] || continue
                while IFS= read -r line; do
                    case $word:$line in @tag:*/) line=${line%/} ;; @tag:*) continue ;; esac
                    [[ -n $quote ]] || printf -v line %q "$line"
                    [[ $line == */ ]] || line="$line "
                    COMPREPLY+=("$line")
                done < <(_ckpt_refs "$root" "$cur")
                ;;
            "$cur"*) COMPREPLY+=("$word ") ;;
        esac
    done
    # Where nothing fits, readline offers file names, which are no help where none may stand.
    [[ ${#COMPREPLY[@]} -gt 0 ]] || compopt +o nospace -o filenames 2>/dev/null
    [[ $offer == *@* ]] || compopt +o default 2>/dev/null
}

# A word as the user means it, without quotes and backslashes: _ckpt_plain WORD
_ckpt_plain() {
    local word=${1#[\'\"]}
    [[ $word == "$1" ]] || word=${word%"${1:0:1}"}
    printf '%s' "${word//\\/}"
}

complete -o default -F _ckpt ckpt
