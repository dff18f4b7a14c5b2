"""``completion``: prints a script with which a shell completes command lines.

The script asks the program for the words, so it knows the systems, chunks, lorries and builds of
the moment, and it need not change with the program.
"""

from __future__ import annotations

import argparse

from fabric.config import Settings

_BASH = """\
# Completion of fabric-initiator for bash: eval "$(fabric-initiator completion bash)"
_fabric_initiator() {
    local kind
    COMPREPLY=()
    {
        read -r kind
        mapfile -t COMPREPLY
    } < <("${1/#\\~/$HOME}" __complete bash "${COMP_LINE:0:COMP_POINT}" "$2" 2>/dev/null)
    case $kind in
    files) compopt -o default ;;
    directories) compopt -o dirnames ;;
    esac
}
complete -F _fabric_initiator fabric-initiator
"""

_ZSH = """\
#compdef fabric-initiator
# Completion of fabric-initiator for zsh: source <(fabric-initiator completion zsh)
# after compinit, or this text in a file _fabric-initiator of a folder in $fpath
_fabric-initiator() {
    local -a answer found
    answer=("${(@f)$(${(Q)~words[1]} __complete zsh \\
        "${(@Q)words[2,CURRENT-1]}" "${(Q)PREFIX}" 2>/dev/null)}")
    case $answer[1] in
    files) _files ;;
    directories) _files -/ ;;
    *)
        found=("${(@)answer[2,-1]}")
        _describe word found
        ;;
    esac
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _fabric-initiator "$@"
else
    compdef _fabric-initiator fabric-initiator
fi
"""

_FISH = """\
# Completion of fabric-initiator for fish: fabric-initiator completion fish | source
function __fabric_initiator_words
    set -l words (commandline -opc)
    set -l last (commandline -ct | string trim --left --chars '"\\'')
    set -l answer ($words[1] __complete fish $words[2..] "$last" 2>/dev/null)
    switch "$answer[1]"
        case files
            __fish_complete_path "$last"
        case directories
            __fish_complete_directories "$last" ''
        case '*'
            printf '%s\\n' $answer[2..]
    end
end
complete -c fabric-initiator -f -a '(__fabric_initiator_words)'
"""

SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SCRIPTS, help="the shell that reads the script")


def run(options: argparse.Namespace, settings: Settings) -> int:  # noqa: ARG001
    print(SCRIPTS[options.shell], end="")
    return 0
