"""The command line. Each verb becomes one Typer command."""
