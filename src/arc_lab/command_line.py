"""What every command of `arc-lab` shares: its parser, how it ends, its tables, and its output for machines."""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.metadata
import json
import os
import select
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn

from arc_lab.folders import CODE, current_build
from arc_ttt.errors import ArcError, InputError, SettingsError

PROGRAM = "arc-lab"

READER_GONE = 128 + 13
"""Exit status of a program whose reader is gone: a shell reports it for SIGPIPE."""

INTERRUPTED = 130
"""Exit status after Ctrl-C."""

LONGEST_FIGURE = 40
"""Characters of the longest figure in a table, such as "-3.5% ± 1.2% (10 won, 11 lost)"; what is longer is text."""

Main = Callable[[Sequence[str]], int]


class Parser(argparse.ArgumentParser):
    """A parser that raises its errors, so that the command can report them in one line.

    Raises:
        SettingsError: from `parse_args`, if the arguments are wrong.
    """

    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message} (see --help)")


class _Help(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of description and examples, and shows each option's default."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        shown = action.default not in (None, False, "", argparse.SUPPRESS) and action.default != []
        if shown and action.option_strings and "(default" not in text:
            text += " (default: %(default)s)"
        return text


class _Version(argparse.Action):
    """Print version and commit, which are looked up only when they are asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(version_text())
        parser.exit()


def version_text() -> str:
    """The program's version, and the commit of its code where that is known."""
    try:
        build = current_build(sources=CODE)
        version, commit = build.version, build.stamp
    except OSError:  # no pyproject.toml: arc_lab does not run from a checkout
        version, commit = importlib.metadata.version("arc-ttt"), "unknown"
    return f"{PROGRAM} {version}" + (f", commit {commit}" if commit != "unknown" else "")


def make_parser(
    name: str, description: str | None, *, examples: Sequence[str] = (), prog: str = "", version: bool = True
) -> Parser:
    """The parser of a command, with --help and --version.

    Args:
        name: the command, as in `arc-lab NAME`.
        description: what the command does; lines stay as they are.
        examples: command lines, shown at the end of the help.
        prog: how a person calls the command, if that is not `arc-lab NAME`.
        version: whether `--version` means this program's.
    """
    epilog = "examples:\n" + "\n".join(f"  {line}" for line in examples) if examples else None
    parser = Parser(
        prog=prog or f"{PROGRAM} {name}",
        description=description,
        epilog=epilog,
        formatter_class=_Help,
    )
    if version:
        about = "print version and commit, and exit"
        parser.add_argument("--version", action=_Version, nargs=0, default=argparse.SUPPRESS, help=about)
    return parser


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add `--json`; the command then works within `json_document`."""
    parser.add_argument("--json", action="store_true", help="print one JSON document; all other text goes to stderr")


def add_set(parser: argparse.ArgumentParser, about: str) -> None:
    """Add `--set NAME=VALUE`, which may be repeated; `settings.parse_overrides` reads what it collects."""
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help=about)


@contextlib.contextmanager
def json_document(asked: bool) -> Iterator[dict[str, Any]]:
    """The result of a command for machines, which the command fills within.

    Where `--json` was given, all text that is printed within goes to stderr, and the document goes to stdout at the
    end, on one line.
    """
    document: dict[str, Any] = {}
    with contextlib.redirect_stdout(sys.stderr) if asked else contextlib.nullcontext():
        yield document
    if asked and document:  # of several processes of a command one has a result
        print(json.dumps(document))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table: with rich on a terminal, as Markdown elsewhere. Columns of figures are right-aligned."""
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    figures = [number > 0 and _are_figures(row[number] for row in cells) for number in range(len(columns))]
    if not sys.stdout.isatty():
        head, *body = ["| " + " | ".join(map(_in_markdown, row)) + " |" for row in [columns, *cells]]
        rule = "|" + "|".join("---:" if right else "---" for right in figures) + "|"
        print("\n".join([f"{title}\n", head, rule, *body]))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    for column, right in zip(columns, figures, strict=True):
        table.add_column(column, justify="right" if right else "left")
    for row in cells:
        table.add_row(*map(Text, row))
    Console().print(table)


def _are_figures(cells: Iterable[str]) -> bool:
    """Whether every cell that is not empty begins like a number, and is too short for a sentence."""
    return all(cell[0] in "+-0123456789" and len(cell) <= LONGEST_FIGURE for cell in cells if cell)


def _in_markdown(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


def reports_errors(name: str, *, interrupted: str = "interrupted") -> Callable[[Main], Main]:
    """Decorate the `main` of command `name`, so that it ends with one line instead of a traceback.

    The command returns 130 after Ctrl-C, 2 for wrong input, and 1 for another error of ours or of the disk.

    Args:
        name: the command.
        interrupted: what the line says after Ctrl-C.
    """

    def decorate(main: Main) -> Main:
        @functools.wraps(main)
        def run(argv: Sequence[str]) -> int:
            try:
                return main(argv)
            except KeyboardInterrupt:
                print(f"{PROGRAM} {name}: {interrupted}", file=sys.stderr)
                return INTERRUPTED
            except BrokenPipeError:  # `ends_with_its_reader` handles it
                raise
            except (ArcError, OSError) as error:
                print(f"{PROGRAM} {name}: {error}", file=sys.stderr)
                return 2 if isinstance(error, InputError) else 1

        return run

    return decorate


def resumable(name: str) -> Callable[[Main], Main]:
    """As `reports_errors`, for a command that continues an interrupted run when it is started again."""
    return reports_errors(name, interrupted="interrupted; the same command goes on")


def ends_with_its_reader(work: Callable[[], int]) -> int:
    """Run `work`, and end it quietly once the reader of its output is gone, as in `arc-lab simulate | head -3`.

    Raises:
        BrokenPipeError: a pipe of the command's own has no reader.
    """
    try:
        try:
            return work()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        gone = [descriptor for descriptor in (1, 2) if _reader_is_gone(descriptor)]
        if not gone:
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in gone:  # the text that is still buffered goes there
            os.dup2(nowhere, descriptor)
        return READER_GONE


def _reader_is_gone(descriptor: int) -> bool:
    """Whether the pipe that a file descriptor writes to has no reader any more."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))
