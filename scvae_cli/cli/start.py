"""The entry of the command line: from the first moment on, a signal ends the command with a message."""

from __future__ import annotations

from scvae_cli.interruption import end_on_signals


def main() -> None:
    """Run the `scvae` command, and exit with its exit code."""
    end_on_signals()
    # Typer takes a tenth of a second.
    from scvae_cli.cli.app import main as run_and_exit

    run_and_exit()
