"""The command line, in which Typer runs the commands of scvae."""
