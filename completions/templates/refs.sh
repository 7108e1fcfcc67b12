# What a selector may become. Plain shell that bash, zsh and fish share: globs alone, and no other program is started.

# Whether anything within three levels of a directory looks like a checkpoint: _ckpt_holds DIR
_ckpt_holds() {
    for file in @GLOBS@ \
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
    first=${above%%/*} sources='@SOURCES@'
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
            case " $sources @ASIDE@ " in *[\ :]"$name "*) continue ;; esac
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
