"""The entry of the command line: from the first moment on, a signal ends the command without a traceback."""


def main() -> None:
    """Run the `scvae` command, and exit with its exit code."""
    # Nothing else is imported before this line, because Ctrl-C during an import would show a traceback.
    import signal

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from scvae_cli.interruption import end_on_signals

    end_on_signals()
    # Typer takes a tenth of a second.
    from scvae_cli.cli.app import main as run_and_exit

    run_and_exit()
