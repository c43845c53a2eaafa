"""The command line, which makes one Typer command from each verb."""
