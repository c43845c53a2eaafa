"""Runs the command line with `python -m scvae_cli`."""

from scvae_cli.cli.start import main

if __name__ == "__main__":
    main()
