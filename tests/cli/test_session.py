"""What every command has in common: who may print where, and what becomes of an exception."""

from __future__ import annotations

import errno
import io
import json
import logging
import warnings
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from tunekit.cli.session import Answer, AsJson, Verbose, command, flowed, say
from tunekit.errors import InvalidError
from tunekit.finding import error


def call(body: Any, *args: str) -> Any:
    """Runs a command whose body is `body`."""

    @command
    def answer(as_json: AsJson = False, verbose: Verbose = False) -> Answer:
        body()
        return Answer(data={"is": float("nan")}, text=lambda: "the answer")

    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(answer)
    return CliRunner().invoke(app, list(args))


def raises(fault: BaseException) -> Any:
    def body() -> None:
        raise fault

    return body


def test_what_a_library_prints_never_reaches_the_answer() -> None:
    assert call(lambda: print("noise")).stdout == "the answer\n"
    assert call(lambda: print("noise")).stderr == "noise\n"
    assert json.loads(call(lambda: print("noise"), "--json").stdout) == {"is": None}


def test_what_a_command_says_while_it_runs_stays_out_of_the_json() -> None:
    assert call(lambda: say("so far")).stdout == "so far\nthe answer\n"
    assert json.loads(call(lambda: say("so far"), "--json").stdout) == {"is": None}
    assert call(lambda: say("so far"), "--json").stderr == "so far\n"


def test_other_ranks_are_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert call(lambda: say("so far")).output == ""
    assert call(lambda: None, "--json").stdout == ""


def test_sentences_are_cut_at_words_on_a_terminal_and_whole_on_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "40")
    text = "[a-code] " + "seventeen rows " * 9 + "\n\n  - " + "/a/long/path" * 9
    assert flowed(text, io.StringIO()) == text
    lines = flowed(text, Terminal()).split("\n")
    assert all(len(line) <= 40 for line in lines[:-2])
    assert all(line.startswith("  ") for line in lines[1:-3]), "further lines hang below the first"
    assert lines[-3:-1] == ["", "  -"], "an empty line stays, a path stays whole"
    assert " ".join(" ".join(lines).split()) == " ".join(text.split()), "nothing is lost"


def test_paragraphs_of_help_flow() -> None:
    @command
    def answer(as_json: AsJson = False, verbose: Verbose = False) -> Answer:
        """One line.

        A paragraph that
        has two lines.
        """
        return Answer(data={})

    assert answer.__doc__ == "One line.\n\nA paragraph that has two lines."


def test_a_refusal_is_one_message_and_exit_2() -> None:
    result = call(raises(InvalidError(error("a-code", "x", "why", "do y"))))
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", "error: [a-code] x: why. Do y.\n")


def test_an_interruption_is_exit_130() -> None:
    result = call(raises(KeyboardInterrupt()))
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_fault_of_the_file_system_is_no_traceback(code: int) -> None:
    result = call(raises(OSError(code, "what it says", "/some/file")))
    assert result.exit_code == 2
    assert result.stderr == "error: [file-system] '/some/file': what it says. Make room or choose another place.\n"


@pytest.mark.parametrize("fault", [OSError("no number"), ZeroDivisionError("ours")])
def test_a_fault_of_our_own_is_not_hidden(fault: Exception) -> None:
    result = call(raises(fault))
    assert result.exit_code == 1
    assert result.exception is fault


def test_libraries_are_quiet_unless_asked_and_heard_again_afterwards(capfd: Any) -> None:
    def loud() -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.warn("careful", UserWarning, stacklevel=1)
        logging.getLogger("bitsandbytes.backends.cpu.ops").warning("no package")
        print(len(caught))

    logger, handler = logging.getLogger("bitsandbytes.backends.cpu.ops"), logging.StreamHandler()
    logger.addHandler(handler)
    assert call(loud).stderr == "0\n"
    logger.warning("heard")
    logger.removeHandler(handler)
    said = capfd.readouterr().err
    assert "no package" not in said
    assert "heard" in said
