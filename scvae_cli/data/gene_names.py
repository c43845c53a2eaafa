"""Names of genes: a unique id (in var_names) and, optionally, a symbol (in a column of var)."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from scvae_cli.data.labels import as_label, labels_of
from scvae_cli.data.store import CellStore
from scvae_cli.errors import DataError

_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class GeneNames:
    """Ids of g genes, and the symbols that are shown to users.

    Parameters
    ----------
    ids, symbols
        Unique ids, and the symbol of each gene. The symbol is None if a gene has no symbol. `symbols` is None if only
        ids are used.
    column, place
        Words for messages: the column of var that contains the symbols, and the place of the genes ("the data" or "the
        model").
    others
        Names (ids and symbols) of genes that are in the data but not in the model.

    >>> genes = GeneNames(ids=("ENSG1", "ENSG2", "ENSG3"), symbols=("GATA1", "TBCE", "TBCE"), column="symbol")
    >>> genes.ids_of(["GATA1", "ENSG3"])
    ('ENSG1', 'ENSG3')
    >>> genes.shown(["ENSG1", "ENSG2"])
    ['GATA1', 'TBCE (ENSG2)']
    """

    ids: tuple[str, ...]
    symbols: tuple[str | None, ...] | None = None
    column: str | None = None
    place: str = "the data"
    others: frozenset[str] = frozenset()

    def ids_of(self, named: Iterable[str] | str) -> tuple[str, ...]:
        """Return the ids of genes. A gene may be named by its id, by its symbol, or by the name that `shown` returns.

        Each id is returned once, in the order of the names. A name that is the id of one gene and the symbol of another
        gene means the gene with that id. A DataError is raised if several genes have the name as their symbol, or if
        no gene has the name.
        """
        names = [named] if isinstance(named, str) else [as_label(name) or "" for name in named]
        found, unknown = [], []
        for name in names:
            candidates = self._ids_by_name.get(name, ())
            if len(candidates) > 1:
                raise DataError(
                    f"{name!r} is the symbol of {len(candidates)} genes: {listed(candidates)}",
                    "name the gene by its id (in var_names)",
                )
            if candidates:
                found.append(candidates[0])
            else:
                unknown.append(name)
        if unknown:
            raise DataError(*self._why_unknown(unknown))
        return tuple(dict.fromkeys(found))

    def __contains__(self, name: str) -> bool:
        return name in self._ids_by_name

    def names(self) -> list[str]:
        """Return all names that `ids_of` accepts for a gene: ids, symbols, and the names that `shown` returns."""
        return list(self._ids_by_name)

    def shown(self, ids: Iterable[str]) -> list[str]:
        """Return the names by which genes are shown in lists and figures.

        A gene is shown by its symbol, or by its id if it has no symbol. If the symbol is also the symbol or the id of
        another gene, both the symbol and the id of the gene are shown.
        """
        return [self._name_by_id.get(str(gene), str(gene)) for gene in ids]

    @cached_property
    def _symbol_by_id(self) -> dict[str, str]:
        named = zip(self.ids, self.symbols or (), strict=False)
        return {gene: symbol for gene, symbol in named if symbol is not None and symbol != gene}

    @cached_property
    def _name_by_id(self) -> dict[str, str]:
        # Ids are counted too, because a symbol that is also the id of another gene is ambiguous.
        carriers = Counter(self._symbol_by_id.values())
        carriers.update(self.ids)
        by_id = self._symbol_by_id.items()
        return {gene: symbol if carriers[symbol] == 1 else f"{symbol} ({gene})" for gene, symbol in by_id}

    @cached_property
    def _ids_by_name(self) -> dict[str, tuple[str, ...]]:
        by_symbol: dict[str, tuple[str, ...]] = {}
        for gene, symbol in self._symbol_by_id.items():
            by_symbol[symbol] = (*by_symbol.get(symbol, ()), gene)
        shown = {name: (gene,) for gene, name in self._name_by_id.items()}
        # A later dictionary overrides an earlier one: symbols override the names of `shown`, and ids override all other
        # names.
        return shown | by_symbol | {gene: (gene,) for gene in self.ids}

    def _why_unknown(self, unknown: Sequence[str]) -> tuple[str, str]:
        what = f"gene {unknown[0]!r} is" if len(unknown) == 1 else f"{len(unknown)} genes ({listed(unknown)}) are"
        if all(name in self.others for name in unknown):
            return f"{what} in the data, but not in {self.place}", "choose genes that the model was trained on"
        first, names = next(name for name in unknown if name not in self.others), list(self._ids_by_name)
        same = [known for known in names if known.casefold() == first.strip().casefold()]
        near = same[:3] or difflib.get_close_matches(first, names, n=3)
        where = "var_names" if self.column is None else f"var_names or var[{self.column!r}]"
        hint = f"did you mean {', '.join(near)}?" if near else f"for example {', '.join(self.shown(self.ids[:3]))}"
        return f"{what} not in {self.place}", f"genes are named as in {where}; {hint}"


def gene_names(store: CellStore, column: str | None = None, *, ids: Sequence[str] | None = None) -> GeneNames:
    """Return the ids and symbols of the genes in the data or in a model.

    Parameters
    ----------
    column
        Column of var with the symbols (--gene-symbols); None if genes are named only by var_names.
    ids
        Ids of the genes of a model, some of which may be missing in the data; None for all genes of the data.

    Raises
    ------
    DataError
        If the column does not exist or contains no symbols.
    """
    known = tuple(str(gene) for gene in store.gene_names)
    ids = known if ids is None else tuple(str(gene) for gene in ids)
    others = set(known) - set(ids)
    place = "the data" if ids is known else "the model"
    if column is None:
        return GeneNames(ids=ids, place=place, others=frozenset(others))
    keys = store.existing("var")
    if column not in keys:
        # Columns of numbers are not listed, because they cannot contain symbols.
        columns = ", ".join(key for key in dict.fromkeys(keys) if _is_text(store, key)) or "none"
        raise DataError(f"{store.title}: no column {column!r} in var", f"--gene-symbols takes one of: {columns}")
    symbols = [None if label is None else label.strip() or None for label in labels_of(store.var_column(column))]
    if not any(symbols):
        raise DataError(f"{store.title}: var[{column!r}] has no values", "--gene-symbols takes a column of gene names")
    symbol_of = dict(zip(known, symbols, strict=True))
    own = tuple(symbol_of.get(gene) for gene in ids)
    others |= {symbol for gene, symbol in symbol_of.items() if symbol and gene in others}
    return GeneNames(ids=ids, symbols=own, column=column, place=place, others=frozenset(others - {*own}))


def _is_text(store: CellStore, key: str) -> bool:
    try:
        return store.var_column(key).dtype.kind not in "biuf"
    except DataError:  # the column cannot be read, or another column has the same name
        return False


def listed(names: Sequence[str]) -> str:
    """Return the first few names as text for a message."""
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
