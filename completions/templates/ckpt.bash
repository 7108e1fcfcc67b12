# bash completion for ckpt. Made by `make completions` from completions/templates: edit those.

@REFS@

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
            case ' @TAKES@ ' in *" $word "*) option=$word ;; esac
        elif [[ -z $command || $command == @GROUP@ ]]; then
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
@VALUES@
        esac
    elif [[ $cur == -* ]]; then
        case $command in
@OPTIONS@
        esac
    else
        case $command in
@PLACES@
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
