# fish completion for ckpt. Made by `make completions` from completions/templates: edit those.

set -g __ckpt_shell '# What a selector may become. Plain shell that bash, zsh and fish share: globs alone, and no other program is started.

# Whether anything within three levels of a directory looks like a checkpoint: _ckpt_holds DIR
_ckpt_holds() {
    for file in "$1"/*.pt "$1"/*.bin "$1"/*.safetensors "$1"/*.ckpt "$1"/*.pth "$1"/*/*.pt "$1"/*/*.bin "$1"/*/*.safetensors "$1"/*/*.ckpt "$1"/*/*.pth "$1"/*/*/*.pt "$1"/*/*/*.bin "$1"/*/*/*.safetensors "$1"/*/*/*.ckpt "$1"/*/*/*.pth \\
        "$1"/.metadata "$1"/*/.metadata "$1"/*/*/.metadata; do
        [ ! -e "$file" ] || return 0
    done
    return 1
}

# The root that `ckpt` would take, or nothing where its settings name one: _ckpt_root [DIR]
_ckpt_root() (
    [ -z "${ZSH_VERSION-}" ] || emulate sh
    for dir in "${1-}" "${CKPT_ROOT-}"; do
        case $dir in \'~\' | \'~/\'*) dir=$HOME${dir#\\~} ;; esac
        [ -z "$dir" ] || { printf \'%s\\n\' "${dir%/}"; return; }
    done
    names_root() { # FILE, the table that counts
        [ -r "$1" ] || return 1
        table=
        while IFS= read -r line || [ -n "$line" ]; do
            case $line in \'[\'*) table=$line ;; esac
            [ "$table" = "$2" ] || continue
            case $line in root*=*) return 0 ;; esac
        done <"$1"
        return 1
    }
    above=$PWD
    while names_root "$above/ckpt.toml" \'\' || names_root "$above/pyproject.toml" \'[tool.ckpt]\' && return; [ -n "$above" ]; do
        above=${above%/*}
    done
    for dir in "${XDG_CONFIG_HOME:-$HOME/.config}" "$HOME/Library/Application Support"; do
        names_root "$dir/ckpt/ckpt.toml" \'\' && return
    done
    if _ckpt_holds "$PWD"; then printf \'%s\\n\' "$PWD"; else printf \'%s\\n\' "${NANOCHAT_BASE_DIR:-$HOME/.cache/nanochat}"; fi
)

# What WORD may become, a line each, a folder with `/` at its end: _ckpt_refs ROOT WORD
_ckpt_refs() (
    [ -z "${ZSH_VERSION-}" ] || emulate sh
    root=$1 word=$2 own=${1##*/}
    case $word in */*) above=${word%/*} ;; *) above= ;; esac
    first=${above%%/*} sources=\'base:base_checkpoints mid:mid_checkpoints sft:chatsft_checkpoints sft:sft_checkpoints rl:chatrl_checkpoints\'
    # The directories that ABOVE stands for, a line each.
    places() {
        [ ! -d "$root/$above" ] || printf \'%s\\n\' "$root/$above"
        [ -z "$above" ] || [ "$first" != "$own" ] || printf \'%s\\n\' "$root${above#"$own"}"
        for pair in $sources; do
            [ ! -d "$root/${pair#*:}/$above" ] || printf \'%s\\n\' "$root/${pair#*:}/$above"
            [ "$first" = "${pair%%:*}" ] || continue
            [ ! -d "$root/${pair#*:}${above#"$first"}" ] || printf \'%s\\n\' "$root/${pair#*:}${above#"$first"}"
            [ "$own" != "${pair#*:}" ] || printf \'%s\\n\' "$root${above#"$first"}"
        done
    }
    fits() { case ${above:+$above/}$1 in "$word"*) printf \'%s\\n\' "${above:+$above/}$1" ;; esac; }
    if [ -z "$above" ]; then
        for pair in $sources; do [ ! -d "$root/${pair#*:}" ] || fits "${pair%%:*}/"; done
    fi
    places | while IFS= read -r place; do
        steps=
        for entry in "$place"/*/; do
            name=${entry%/} && name=${name##*/}
            case " $sources eval_bundle report tokenizer " in *[\\ :]"$name "*) continue ;; esac
            case $name in
                \'*\' | base_data*) ;;
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
)'

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
            contains -- $word --after --before --config --device --dtype --family --field --filter --format --id --jobs --keep --keep-best --keep-every --keep-last --keep-step --keep-within --key --limit --max-shard-size --max-size --metric --model --model-tag --output --part --phase --policy --root --save-logits --set --sort --source --state --step --tag --timeout --to --tokens --unset -g -i -o -s; and set option $word
        else if test -z "$command" -o "$command" = inspect
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
complete -c ckpt -n "__ckpt_in ''" -a list -d 'List every checkpoint, by run and step'
complete -c ckpt -n "__ckpt_in ''" -a latest -d 'Print the newest complete step of a run'
complete -c ckpt -n "__ckpt_in ''" -a inspect -d 'Look inside: metadata, tensors, optimizer, differences'
complete -c ckpt -n "__ckpt_in ''" -a verify -d 'Check that every byte is as it was written'
complete -c ckpt -n "__ckpt_in ''" -a load-test -d 'Rebuild the model: does it load, run and resume?'
complete -c ckpt -n "__ckpt_in ''" -a patch-config -d 'Bring old metadata up to date'
complete -c ckpt -n "__ckpt_in ''" -a prune -d 'Remove checkpoints that no policy keeps'
complete -c ckpt -n "__ckpt_in ''" -a convert -d 'Write the tensors in another format, or under other names'
complete -c ckpt -n "__ckpt_in ''" -a demo -d 'Write a small real tree to try everything on'
complete -c ckpt -n "__ckpt_at ''" -l version -d 'Print the version and exit'
complete -c ckpt -n "__ckpt_at ''" -s h -l help -d 'Show this message and exit'
complete -c ckpt -n "__ckpt_in 'list'" -k -a '(__ckpt_refs ref)'
complete -c ckpt -n "__ckpt_at 'list'" -l root -r -a '(__fish_complete_directories)' -d 'Where the checkpoints are'
complete -c ckpt -n "__ckpt_at 'list'" -s i -l source -r -a 'base mid sft rl' -d 'Only this source: base, mid, sft, rl'
complete -c ckpt -n "__ckpt_at 'list'" -s g -l tag -l model-tag -r -a '(__ckpt_refs tag)' -d 'Only this run'
complete -c ckpt -n "__ckpt_at 'list'" -s s -l step -r -a 'latest best' -d 'Only this step'
complete -c ckpt -n "__ckpt_at 'list'" -l state -r -a 'complete incomplete in-progress' -d 'Only what is in this state'
complete -c ckpt -n "__ckpt_at 'list'" -l sort -r -a 'run step size age metric' -d 'By what; age has the newest first, metric the best'
complete -c ckpt -n "__ckpt_at 'list'" -l reverse -d 'The other way round'
complete -c ckpt -n "__ckpt_at 'list'" -l before -r -d 'Only steps below N'
complete -c ckpt -n "__ckpt_at 'list'" -l after -r -d 'Only steps above N'
complete -c ckpt -n "__ckpt_at 'list'" -l metric -r -d 'The metric to show'
complete -c ckpt -n "__ckpt_at 'list'" -l limit -r -d 'Only the first N of them'
complete -c ckpt -n "__ckpt_at 'list'" -l trash -d 'What lies in the trash instead'
complete -c ckpt -n "__ckpt_at 'list'" -l format -r -a 'table plain json name' -d 'Output format'
complete -c ckpt -n "__ckpt_at 'list'" -l json -d 'One JSON object'
complete -c ckpt -n "__ckpt_at 'list'" -s q -l quiet -d 'Names only'
complete -c ckpt -n "__ckpt_at 'list'" -s h -l help -d 'Show this message and exit'
complete -c ckpt -n "__ckpt_in 'latest'" -k -a '(__ckpt_refs ref)'
complete -c ckpt -n "__ckpt_at 'latest'" -l root -r -a '(__fish_complete_directories)' -d 'Where the checkpoints are'
complete -c ckpt -n "__ckpt_at 'latest'" -s i -l source -r -a 'base mid sft rl' -d 'Only this source: base, mid, sft, rl'
complete -c ckpt -n "__ckpt_at 'latest'" -s g -l tag -l model-tag -r -a '(__ckpt_refs tag)' -d 'Only this run'
complete -c ckpt -n "__ckpt_at 'latest'" -s s -l step -r -a 'latest best' -d 'Only this step'
complete -c ckpt -n "__ckpt_at 'latest'" -l field -r -a 'path dir ref source tag step' -d 'What to print of it'
complete -c ckpt -n "__ckpt_at 'latest'" -l best -d 'The best by the metric instead of the newest'
complete -c ckpt -n "__ckpt_at 'latest'" -l metric -r -d 'Best by this metric; implies --best'
complete -c ckpt -n "__ckpt_at 'latest'" -l before -r -d 'Only steps below N'
complete -c ckpt -n "__ckpt_at 'latest'" -l resumable -d 'Only what training can resume from'
complete -c ckpt -n "__ckpt_at 'latest'" -l any-state -d 'Incomplete ones count too'
complete -c ckpt -n "__ckpt_at 'latest'" -l format -r -a 'table plain json name' -d 'Output format'
complete -c ckpt -n "__ckpt_at 'latest'" -l json -d 'One JSON object'
complete -c ckpt -n "__ckpt_at 'latest'" -s q -l quiet -d 'Names only'
complete -c ckpt -n "__ckpt_at 'latest'" -s h -l help -d 'Show this message and exit'
complete -c ckpt -n "__ckpt_in 'inspect'" -a meta -d 'Show the metadata, or one value of it'
complete -c ckpt -n "__ckpt_in 'inspect'" -a tensors -d 'List the tensors: name, dtype, shape, bytes, sharing'
complete -c ckpt -n "__ckpt_in 'inspect'" -a optim -d 'Show the optimizer of each rank: groups, settings, states'
complete -c ckpt -n "__ckpt_in 'inspect'" -a diff -d 'Say what differs between two checkpoints or files'
complete -c ckpt -n "__ckpt_at 'inspect'" -s h -l help -d 'Show this message and exit'
complete -c ckpt -n "__ckpt_in 'inspect meta'" -k -a '(__ckpt_refs ref)'
complete -c ckpt -n "__ckpt_at 'inspect meta'" -l root -r -a '(__fish_complete_directories)' -d 'Where the checkpoints are'
complete -c ckpt -n "__ckpt_at 'inspect meta'" -s i -l source -r -a 'base mid sft rl' -d 'Only this source: base, mid, sft, rl'
complete -c ckpt -n "__ckpt_at 'inspect meta'" -s g -l tag -l model-tag -r -a '(__ckpt_refs tag)' -d 'Only this run'
complete -c ckpt -n "__ckpt_at 'inspect meta'" -s s -l step -r -a 'latest best' -d 'Only this step'
complete -c ckpt -n "__ckpt_at 'inspect meta'" -l key -r -d 'Print one value'
complete -c ckpt -n "__ckpt_at 'inspect meta'" -l format -r -a 'table plain json' -d 'Output format'
complete -c ckpt -n "__ckpt_at 'inspect meta'" -l json -d 'One JSON object'
complete -c ckpt -n "__ckpt_at 'inspect meta'" -s h -l help -d 'Show this message and exit'
complete -c ckpt -n "__ckpt_in 'inspect tensors'" -k -a '(__ckpt_refs ref)'
complete -c ckpt -n "__ckpt_at 'inspect tensors'" -l root -r -a '(__fish_complete_directories)' -d 'Where the checkpoints are'
complete -c ckpt -n "__ckpt_at 'inspect tensors'" -s i -l source -r -a 'base mid sft rl' -d 'Only this source: base, mid, sft, rl'
complete -c ckpt -n "__ckpt_at 'inspect tensors'" -s g -l tag -l model-tag -r -a '(__ckpt_refs tag)' -d 'Only this run'
complete -c ckpt -n "__ckpt_at 'inspect tensors'" -s s -l step -r -a 'latest best' -d 'Only this step'
complete -c ckpt -n "__ckpt_at 'inspect tensors'" -l part -r -a '(__fish_complete_path)' -d 'Which files'
complete -c ckpt -n "__ckpt_at 'inspect tensors'" -l filter -r -d 'Only names that match'
complete -c ckpt -n "__ckpt_at 'inspect tensors'" -l sort -r -a 'file name bytes' -d 'By what'
complete -c ckpt -n "__ckpt_at 'inspect tensors'" -l tree -d 'Branches of dotted names, with what each holds'
complete -c ckpt -n "__ckpt_at 'inspect tensors'" -l stats -d 'min, max, mean, std, NaN, infinities and zeros of each; reads all bytes'
complete -c ckpt -n "__ckpt_at 'inspect tensors'" -l hash -d 'sha256 of each tensor\'s bytes; reads all of them'
complete -c ckpt -n "__ckpt_at 'inspect tensors'" -l values -d 'What is no tensor instead, by name, in full'
complete -c ckpt -n "__ckpt_at 'inspect tensors'" -l format -r -a 'table plain json name' -d 'Output format'
complete -c ckpt -n "__ckpt_at 'inspect tensors'" -l json -d 'One JSON object'
complete -c ckpt -n "__ckpt_at 'inspect tensors'" -s q -l quiet -d 'Names only'
complete -c ckpt -n "__ckpt_at 'inspect tensors'" -s h -l help -d 'Show this message and exit'
complete -c ckpt -n "__ckpt_in 'inspect optim'" -k -a '(__ckpt_refs ref)'
complete -c ckpt -n "__ckpt_at 'inspect optim'" -l root -r -a '(__fish_complete_directories)' -d 'Where the checkpoints are'
complete -c ckpt -n "__ckpt_at 'inspect optim'" -s i -l source -r -a 'base mid sft rl' -d 'Only this source: base, mid, sft, rl'
complete -c ckpt -n "__ckpt_at 'inspect optim'" -s g -l tag -l model-tag -r -a '(__ckpt_refs tag)' -d 'Only this run'
complete -c ckpt -n "__ckpt_at 'inspect optim'" -s s -l step -r -a 'latest best' -d 'Only this step'
complete -c ckpt -n "__ckpt_at 'inspect optim'" -l part -r -a '(__fish_complete_path)' -d 'Only this file of the checkpoint'
complete -c ckpt -n "__ckpt_at 'inspect optim'" -l format -r -a 'table plain json' -d 'Output format'
complete -c ckpt -n "__ckpt_at 'inspect optim'" -l json -d 'One JSON object'
complete -c ckpt -n "__ckpt_at 'inspect optim'" -s h -l help -d 'Show this message and exit'
complete -c ckpt -n "__ckpt_in 'inspect diff'" -k -a '(__ckpt_refs ref)'
complete -c ckpt -n "__ckpt_at 'inspect diff'" -l root -r -a '(__fish_complete_directories)' -d 'Where the checkpoints are'
complete -c ckpt -n "__ckpt_at 'inspect diff'" -s i -l source -r -a 'base mid sft rl' -d 'Only this source: base, mid, sft, rl'
complete -c ckpt -n "__ckpt_at 'inspect diff'" -s g -l tag -l model-tag -r -a '(__ckpt_refs tag)' -d 'Only this run'
complete -c ckpt -n "__ckpt_at 'inspect diff'" -s s -l step -r -a 'latest best' -d 'Only this step'
complete -c ckpt -n "__ckpt_at 'inspect diff'" -l values -d 'How large each change is: max |b-a| and ||b-a||/||a||'
complete -c ckpt -n "__ckpt_at 'inspect diff'" -l exit-code -d 'Exit with 1 if anything differs or cannot be compared'
complete -c ckpt -n "__ckpt_at 'inspect diff'" -l format -r -a 'table plain json' -d 'Output format'
complete -c ckpt -n "__ckpt_at 'inspect diff'" -l json -d 'One JSON object'
complete -c ckpt -n "__ckpt_at 'inspect diff'" -s h -l help -d 'Show this message and exit'
complete -c ckpt -n "__ckpt_in 'verify'" -k -a '(__ckpt_refs ref)'
complete -c ckpt -n "__ckpt_at 'verify'" -l root -r -a '(__fish_complete_directories)' -d 'Where the checkpoints are'
complete -c ckpt -n "__ckpt_at 'verify'" -s i -l source -r -a 'base mid sft rl' -d 'Only this source: base, mid, sft, rl'
complete -c ckpt -n "__ckpt_at 'verify'" -s g -l tag -l model-tag -r -a '(__ckpt_refs tag)' -d 'Only this run'
complete -c ckpt -n "__ckpt_at 'verify'" -s s -l step -r -a 'latest best' -d 'Only this step'
complete -c ckpt -n "__ckpt_at 'verify'" -l record -d 'Write a manifest that sha256sum -c reads'
complete -c ckpt -n "__ckpt_at 'verify'" -l force -d 'With --record: over one that does not match'
complete -c ckpt -n "__ckpt_at 'verify'" -l strict -d 'A file without a checksum is a failure'
complete -c ckpt -n "__ckpt_at 'verify'" -l jobs -r -d 'Files at a time'
complete -c ckpt -n "__ckpt_at 'verify'" -l format -r -a 'table plain json name' -d 'Output format'
complete -c ckpt -n "__ckpt_at 'verify'" -l json -d 'One JSON object'
complete -c ckpt -n "__ckpt_at 'verify'" -s q -l quiet -d 'Names only'
complete -c ckpt -n "__ckpt_at 'verify'" -s h -l help -d 'Show this message and exit'
complete -c ckpt -n "__ckpt_in 'load-test'" -k -a '(__ckpt_refs ref)'
complete -c ckpt -n "__ckpt_at 'load-test'" -l root -r -a '(__fish_complete_directories)' -d 'Where the checkpoints are'
complete -c ckpt -n "__ckpt_at 'load-test'" -s i -l source -r -a 'base mid sft rl' -d 'Only this source: base, mid, sft, rl'
complete -c ckpt -n "__ckpt_at 'load-test'" -s g -l tag -l model-tag -r -a '(__ckpt_refs tag)' -d 'Only this run'
complete -c ckpt -n "__ckpt_at 'load-test'" -s s -l step -r -a 'latest best' -d 'Only this step'
complete -c ckpt -n "__ckpt_at 'load-test'" -l device -r -a 'auto cpu cuda mps meta' -d 'On what; meta computes shapes alone'
complete -c ckpt -n "__ckpt_at 'load-test'" -l dtype -r -a 'bf16 fp16 fp32 fp64' -d 'Hold floats so'
complete -c ckpt -n "__ckpt_at 'load-test'" -l phase -r -a 'eval train' -d 'train takes an optimizer step'
complete -c ckpt -n "__ckpt_at 'load-test'" -l tokens -r -d 'The batch, instead of a seeded one'
complete -c ckpt -n "__ckpt_at 'load-test'" -l save-logits -r -a '(__fish_complete_path)' -d 'Write the logits as safetensors'
complete -c ckpt -n "__ckpt_at 'load-test'" -l force -d 'With --save-logits: replace an existing file'
complete -c ckpt -n "__ckpt_at 'load-test'" -l set -r -d 'softcap=15|20, rotary_rounding=bf16|none, window_pattern='
complete -c ckpt -n "__ckpt_at 'load-test'" -l family -r -a 'gpt2-nano-gpt gpt2-nanogpt gpt2-build-nanogpt nanochat-v1 nanochat-lambdas nanochat-window nanochat-ve32 nanochat-engram nanochat-ve12 nanochat-smear nanochat-moe3' -d 'Build it as this family'
complete -c ckpt -n "__ckpt_at 'load-test'" -l model -r -d 'Build a class of your own'
complete -c ckpt -n "__ckpt_at 'load-test'" -l config -r -a '(__fish_complete_path)' -d 'Supplies what the checkpoint\'s configuration lacks'
complete -c ckpt -n "__ckpt_at 'load-test'" -l timeout -r -d 'Seconds that a level may take'
complete -c ckpt -n "__ckpt_at 'load-test'" -l format -r -a 'table plain json' -d 'Output format'
complete -c ckpt -n "__ckpt_at 'load-test'" -l json -d 'One JSON object'
complete -c ckpt -n "__ckpt_at 'load-test'" -s h -l help -d 'Show this message and exit'
complete -c ckpt -n "__ckpt_in 'patch-config'" -k -a '(__ckpt_refs ref)'
complete -c ckpt -n "__ckpt_at 'patch-config'" -l root -r -a '(__fish_complete_directories)' -d 'Where the checkpoints are'
complete -c ckpt -n "__ckpt_at 'patch-config'" -s i -l source -r -a 'base mid sft rl' -d 'Only this source: base, mid, sft, rl'
complete -c ckpt -n "__ckpt_at 'patch-config'" -s g -l tag -l model-tag -r -a '(__ckpt_refs tag)' -d 'Only this run'
complete -c ckpt -n "__ckpt_at 'patch-config'" -s s -l step -r -a 'latest best' -d 'Only this step'
complete -c ckpt -n "__ckpt_at 'patch-config'" -l set -r -d 'Set a.b by hand; plain words are text. May be given again'
complete -c ckpt -n "__ckpt_at 'patch-config'" -l unset -r -d 'Take a.b away. May be given again'
complete -c ckpt -n "__ckpt_at 'patch-config'" -l all -d 'Every checkpoint of the set or the root'
complete -c ckpt -n "__ckpt_at 'patch-config'" -l check -d 'Change nothing; exit 1 if something would change'
complete -c ckpt -n "__ckpt_at 'patch-config'" -l undo -d 'Bring back what the latest patch replaced'
complete -c ckpt -n "__ckpt_at 'patch-config'" -l force -d 'Set what the old value or the tensors contradict; undo over later changes'
complete -c ckpt -n "__ckpt_at 'patch-config'" -s n -l dry-run -d 'Only show what would be done'
complete -c ckpt -n "__ckpt_at 'patch-config'" -s y -l yes -d 'Do not ask'
complete -c ckpt -n "__ckpt_at 'patch-config'" -l format -r -a 'table plain json name' -d 'Output format'
complete -c ckpt -n "__ckpt_at 'patch-config'" -l json -d 'One JSON object'
complete -c ckpt -n "__ckpt_at 'patch-config'" -s q -l quiet -d 'Names only'
complete -c ckpt -n "__ckpt_at 'patch-config'" -s h -l help -d 'Show this message and exit'
complete -c ckpt -n "__ckpt_in 'prune'" -k -a '(__ckpt_refs ref)'
complete -c ckpt -n "__ckpt_at 'prune'" -l root -r -a '(__fish_complete_directories)' -d 'Where the checkpoints are'
complete -c ckpt -n "__ckpt_at 'prune'" -s i -l source -r -a 'base mid sft rl' -d 'Only this source: base, mid, sft, rl'
complete -c ckpt -n "__ckpt_at 'prune'" -s g -l tag -l model-tag -r -a '(__ckpt_refs tag)' -d 'Only this run'
complete -c ckpt -n "__ckpt_at 'prune'" -l keep -l keep-last -r -d 'Keep the last N of each run'
complete -c ckpt -n "__ckpt_at 'prune'" -l keep-every -r -d 'Keep one every so many steps'
complete -c ckpt -n "__ckpt_at 'prune'" -l keep-best -r -d 'Keep the best N of each run, and those never measured'
complete -c ckpt -n "__ckpt_at 'prune'" -l keep-within -r -d 'Keep what was written within 7d, 12h, 2w'
complete -c ckpt -n "__ckpt_at 'prune'" -l keep-step -r -d 'Keep this step; may be given again'
complete -c ckpt -n "__ckpt_at 'prune'" -l max-size -r -d 'Keep the best and the newest that fit into 50GB in all'
complete -c ckpt -n "__ckpt_at 'prune'" -l policy -r -d 'Keep what this policy of the settings says'
complete -c ckpt -n "__ckpt_at 'prune'" -l metric -r -d 'What best is judged by'
complete -c ckpt -n "__ckpt_at 'prune'" -l drop-unmeasured -d '--keep-best keeps none that lacks the metric'
complete -c ckpt -n "__ckpt_at 'prune'" -l optimizer-only -d 'Only the optimizer files go; the models stay'
complete -c ckpt -n "__ckpt_at 'prune'" -l incomplete -d 'Remove incomplete checkpoints too'
complete -c ckpt -n "__ckpt_at 'prune'" -l allow-empty -d 'With --keep 0: remove one whole run'
complete -c ckpt -n "__ckpt_at 'prune'" -l trust-steps -d 'Go by steps in a restarted run'
complete -c ckpt -n "__ckpt_at 'prune'" -l trash -d 'Move to the run\'s trash, to be undone or purged'
complete -c ckpt -n "__ckpt_at 'prune'" -l undo -d 'Put back what the latest operation moved away'
complete -c ckpt -n "__ckpt_at 'prune'" -l purge -d 'Delete what the latest operation moved away'
complete -c ckpt -n "__ckpt_at 'prune'" -l id -r -d 'Undo or purge this operation'
complete -c ckpt -n "__ckpt_at 'prune'" -s n -l dry-run -d 'Only show what would be done'
complete -c ckpt -n "__ckpt_at 'prune'" -s y -l yes -d 'Do not ask'
complete -c ckpt -n "__ckpt_at 'prune'" -l format -r -a 'table plain json name' -d 'Output format'
complete -c ckpt -n "__ckpt_at 'prune'" -l json -d 'One JSON object'
complete -c ckpt -n "__ckpt_at 'prune'" -s q -l quiet -d 'Names only'
complete -c ckpt -n "__ckpt_at 'prune'" -s h -l help -d 'Show this message and exit'
complete -c ckpt -n "__ckpt_in 'convert'" -k -a '(__ckpt_refs ref)'
complete -c ckpt -n "__ckpt_at 'convert'" -l root -r -a '(__fish_complete_directories)' -d 'Where the checkpoints are'
complete -c ckpt -n "__ckpt_at 'convert'" -s i -l source -r -a 'base mid sft rl' -d 'Only this source: base, mid, sft, rl'
complete -c ckpt -n "__ckpt_at 'convert'" -s g -l tag -l model-tag -r -a '(__ckpt_refs tag)' -d 'Only this run'
complete -c ckpt -n "__ckpt_at 'convert'" -s s -l step -r -a 'latest best' -d 'Only this step'
complete -c ckpt -n "__ckpt_at 'convert'" -l to -r -a 'safetensors pt hf torchtune meta' -d 'In what form; hf and meta are folders'
complete -c ckpt -n "__ckpt_at 'convert'" -s o -l output -r -a '(__fish_complete_path)' -d 'File or directory to write'
complete -c ckpt -n "__ckpt_at 'convert'" -l dtype -r -a 'bf16 fp16 fp32 fp64' -d 'Cast floats'
complete -c ckpt -n "__ckpt_at 'convert'" -l max-shard-size -r -d 'Shards of 5GB, say, and their index'
complete -c ckpt -n "__ckpt_at 'convert'" -l part -r -a '(__fish_complete_path)' -d 'What to convert'
complete -c ckpt -n "__ckpt_at 'convert'" -l config -r -a '(__fish_complete_path)' -d 'Supplies what the source\'s configuration lacks'
complete -c ckpt -n "__ckpt_at 'convert'" -l all -d 'Every checkpoint of the set or the root'
complete -c ckpt -n "__ckpt_at 'convert'" -l keep-going -d 'With --all: go on after a failure'
complete -c ckpt -n "__ckpt_at 'convert'" -l force -d 'Replace an existing output'
complete -c ckpt -n "__ckpt_at 'convert'" -s n -l dry-run -d 'Only show what would be done'
complete -c ckpt -n "__ckpt_at 'convert'" -l format -r -a 'table plain json name' -d 'Output format'
complete -c ckpt -n "__ckpt_at 'convert'" -l json -d 'One JSON object'
complete -c ckpt -n "__ckpt_at 'convert'" -s q -l quiet -d 'Names only'
complete -c ckpt -n "__ckpt_at 'convert'" -s h -l help -d 'Show this message and exit'
complete -c ckpt -n "__ckpt_in 'demo'" -a '(__fish_complete_directories)'
complete -c ckpt -n "__ckpt_at 'demo'" -l format -r -a 'table plain json' -d 'Output format'
complete -c ckpt -n "__ckpt_at 'demo'" -l json -d 'One JSON object'
complete -c ckpt -n "__ckpt_at 'demo'" -s h -l help -d 'Show this message and exit'
