"""The entry point of the command line. Ctrl-C shows no traceback, even while modules are imported."""


def main() -> None:
    """Run the `scvae` command, and exit with its exit code."""
    # No other module is imported before the handling of Ctrl-C is set, because Ctrl-C during an import would show a
    # traceback.
    import signal

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from scvae_cli.interruption import end_on_signals

    end_on_signals()
    # Importing Typer takes a tenth of a second, so the handling of Ctrl-C is set before the import.
    from scvae_cli.cli.app import main as run_and_exit

    run_and_exit()
