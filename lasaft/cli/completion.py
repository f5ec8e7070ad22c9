"""Tab completion for bash and zsh: a script of the words that a command line can have."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping

from lasaft.errors import ConfigError, Problem
from lasaft.options import Option, did_you_mean

SHELLS = ("bash", "zsh")
# zsh has bash's `complete` once it is asked for.
_ZSH = "autoload -Uz compinit bashcompinit && compinit -u && bashcompinit\n"
# Words that begin with no dash, and values without choices, are files: `-o default`.
_SCRIPT = """\
_lasaft_words() {{
    case $1 in
{cases}
    *) return 1 ;;
    esac
}}
_lasaft() {{
    local at verb="" word=${{COMP_WORDS[COMP_CWORD]}} last=${{COMP_WORDS[COMP_CWORD-1]}} found=""
    for ((at = 1; at < COMP_CWORD; at++)); do
        if [ "$verb" = "" ] && _lasaft_words "${{COMP_WORDS[at]}}" >/dev/null; then
            verb=${{COMP_WORDS[at]}}
        fi
    done
    case $word in --*) word=${{word#--}} word=--${{word//-/_}} ;; esac
    case $last in
    --*) last=${{last#--}} found=$(_lasaft_words "$verb --${{last//-/_}}") || last="" ;;
    esac
    if [ "$verb" = "" ]; then
        found=$(_lasaft_words "after ${{last##*/}}")
    elif [ "$found" = "" ]; then
        case $word in -*) found=$(_lasaft_words "$verb") ;; esac
    fi
    COMPREPLY=($(compgen -W "$found" -- "$word"))
}}
complete -o default -F _lasaft {programs}
"""


def completion(
    shell: str,
    programs: Collection[str],
    begins: Mapping[str, Collection[str]],
    verbs: Mapping[str, tuple[Mapping[str, Option], Mapping[str, Collection[str]]]],
) -> str:
    """Return what a shell reads to complete command lines.

    Args:
        shell: ``bash`` or ``zsh``.
        programs: the commands whose lines are completed.
        begins: by the word before, the verbs.
        verbs: for each, its options, and what else begins with dashes, with the values of that.

    Raises:
        ConfigError: another shell.
    """
    if shell not in SHELLS:
        allowed = ", ".join(SHELLS) + did_you_mean(shell, SHELLS)
        raise ConfigError(Problem("completion", repr(shell), allowed))
    table = {f"after {word}": sorted(names) for word, names in begins.items()}
    for verb, (options, others) in verbs.items():
        table[verb] = [f"--{name}" for name in (*options, *others, "help")]
        values = {name: _choices(option) for name, option in options.items()}
        values |= {**others, "help": options}
        table |= {f"{verb} --{name}": list(words) for name, words in values.items() if words}
    cases = [f"    {shlex.quote(key)}) echo {' '.join(words)} ;;" for key, words in table.items()]
    script = _SCRIPT.format(cases="\n".join(cases), programs=" ".join(programs))
    return (_ZSH if shell == "zsh" else "") + script


def _choices(option: Option) -> Collection[str]:
    return ("True", "False") if option.kind == "bool" else option.choices
