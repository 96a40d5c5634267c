"""The command line ``gem``, one module per command.

Exit codes: 0, all is well; 1, an environment failed its check or cannot be imported, or episodes differ, cannot be
reproduced or cannot be exported; 2, the command or a file that it names cannot be understood. An error is one line on
stderr.

A command imports what it needs when it runs, so that ``gem --help`` does not wait for numpy and the environments.
"""

from __future__ import annotations

import sys

import typer

from gem.cli import bench, check, compare, diff, doctor, envs, eval, export, play, replay, serve_search, tasks, view

app = typer.Typer(
    help="GEM, a gym for language-model agents.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
for _module in (envs, play, check, tasks, eval, compare, view, bench, doctor, serve_search, diff, replay, export):
    app.command()(getattr(_module, _module.__name__.rpartition(".")[2]))


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that knows no ✓ gets a question mark
    app(prog_name="gem")
