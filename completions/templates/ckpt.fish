# fish completion for ckpt. Made by `make completions` from completions/templates: edit those.

set -g __ckpt_shell '@REFS_QUOTED@'

# The command before the cursor, such as `inspect meta`; with `root`, the value of --root; with `option`, the option
# whose value is being typed.
function __ckpt_line
    set -l command
    set -l option
    set -l root
    for word in (commandline -opc)[2..-1]
        if test -n "$option"
            test "$option" = --root; and set root $word
            set option
        else if string match -q -- '--root=*' $word
            set root (string replace -- --root= '' $word)
        else if string match -q -- '-*' $word
            contains -- $word @TAKES@; and set option $word
        else if test -z "$command" -o "$command" = @GROUP@
            set command (string trim "$command $word")
        end
    end
    switch "$argv"
        case root
            printf '%s\n' $root
        case option
            printf '%s\n' $option
        case '*'
            printf '%s\n' $command
    end
end

# Whether a place of this command is being typed, not the value of an option: __ckpt_in COMMAND
function __ckpt_in
    set -l option (__ckpt_line option)
    test -z "$option"; and __ckpt_at $argv
end

# Whether this is the command before the cursor: __ckpt_at COMMAND
function __ckpt_at
    set -l line (__ckpt_line)
    test "$line" = "$argv[1]"
end

# What the word may become: __ckpt_refs ref|tag
function __ckpt_refs
    set -l word (commandline -ct | string replace -r -- '^--[a-z-]+=' '' | string unescape)
    if string match -qr '^(/|\./|\.\./|~)' -- $word
        test $argv[1] = tag; or __fish_complete_path $word
        return
    end
    set -l found (sh -c "$__ckpt_shell"'; root=$(_ckpt_root "$1"); [ -z "$root" ] || _ckpt_refs "$root" "$2"' sh (__ckpt_line root) "$word")
    if test $argv[1] = tag
        string match -- '*/' $found | string replace -r '/$' ''
    else if set -q found[1]
        printf '%s\n' $found
    else
        __fish_complete_path $word
    end
end

complete -c ckpt -f
@FISH@
