"""Run the command line as `python -m scvae_cli`."""

from scvae_cli.cli.start import main

if __name__ == "__main__":
    main()
