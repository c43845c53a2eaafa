"""Lists of genes on the command line: names such as A,B,C, or @FILE for a file with names.

Every command imports this module, so the module itself imports little.
"""

from __future__ import annotations

from pathlib import Path

from scvae_cli.errors import ConfigError
from scvae_cli.regular_file import read_regular

# Largest size of a file with gene names, in bytes.
MOST_BYTES = 1 << 26


def parse_genes(option: str, text: str) -> tuple[str, ...]:
    """Return the genes in `text`, which is a list such as A,B,C, or @FILE for a file with one gene per line.

    A gene that occurs several times is returned once, at its first position. Raises a ConfigError if the file cannot be
    read or the list contains no gene. The error names the option `option`.

    >>> parse_genes("--genes", "Klf1, Car1,Klf1")
    ('Klf1', 'Car1')
    """
    hint = f"{option} takes A,B,C or @FILE with one gene per line; use @FILE if a name contains a comma"
    try:
        in_file = text.startswith("@")
        named = text.split(",")
        if in_file:
            named = read_regular(Path(text[1:]), most=MOST_BYTES).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the gene list {text[1:]}", hint) from error
    genes = tuple(dict.fromkeys(gene.strip() for gene in named if gene.strip()))
    if not genes:
        raise ConfigError(f"{option} {text!r} contains no gene names", hint)
    return genes
