"""What a shell is offered after TAB."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from maskfleet.cli.main import main


@pytest.mark.parametrize("command", ["segment", "submit", "batch", "upload", "embed"])
def test_a_shell_completes_files(command: str) -> None:
    for shell in ("bash", "zsh", "fish"):
        words = {"COMP_WORDS": f"maskfleet {command} ex", "COMP_CWORD": "2" if shell != "fish" else "ex"}
        answer = CliRunner().invoke(
            main, prog_name="maskfleet", env={**words, "_MASKFLEET_COMPLETE": f"{shell}_complete"}
        )

        assert answer.exit_code == 0
        assert answer.stdout.replace("\n", ",").startswith(("file,ex", "file\tex", "file,ex")), answer.stdout


def test_a_shell_completes_commands_without_importing_them() -> None:
    environment = {"COMP_WORDS": "maskfleet s", "COMP_CWORD": "1", "_MASKFLEET_COMPLETE": "bash_complete"}

    answer = CliRunner().invoke(main, prog_name="maskfleet", env=environment)

    assert answer.stdout.split() == ["plain,segment", "plain,submit", "plain,status", "plain,sweep"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell_is_printed(shell: str) -> None:
    named_one = CliRunner().invoke(main, ["completion", shell])
    by_environment = CliRunner().invoke(main, ["completion"], env={"SHELL": f"/bin/{shell}"})

    assert "_MASKFLEET_COMPLETE" in named_one.stdout
    assert by_environment.stdout == named_one.stdout
    assert CliRunner().invoke(main, ["completion", "tcsh"]).exit_code == 2
