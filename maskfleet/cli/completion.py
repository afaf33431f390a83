"""``maskfleet completion``: the script that has a shell complete commands, options and files."""

from __future__ import annotations

import os
from pathlib import PurePath

import click
from click.shell_completion import ShellComplete, get_completion_class

from maskfleet.cli.terminal import Named

SHELLS = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=Named(SHELLS), required=False)
@click.pass_context
def completion_command(context: click.Context, shell: str | None) -> None:
    """Print the script that has SHELL complete commands, options and files.  [default: the SHELL of the environment]

    \b
    bash: add to ~/.bashrc   eval "$(maskfleet completion bash)"
    zsh:  add to ~/.zshrc    eval "$(maskfleet completion zsh)"
    fish: maskfleet completion fish > ~/.config/fish/completions/maskfleet.fish
    """
    shell = shell or PurePath(os.environ.get("SHELL", "")).name
    kind = get_completion_class(shell)
    if kind is None or shell not in SHELLS:
        raise click.UsageError(f"Name the shell: {', '.join(SHELLS)}.")
    program = kind(context.find_root().command, {}, "maskfleet", "_MASKFLEET_COMPLETE")
    # Not the class's own, which for bash runs it to ask for its version.
    click.echo(ShellComplete.source(program))
