"""Genes can be named and shown by id or symbol, and lists of genes can be given in files."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scvae_cli.config import DataConfig
from scvae_cli.data.counts import read_counts
from scvae_cli.data.formats import open_store
from scvae_cli.data.gene_names import GeneNames, gene_names
from scvae_cli.data.gene_selection import select_genes
from scvae_cli.errors import ConfigError, DataError
from scvae_cli.gene_list import parse_genes
from scvae_cli.session import Session

# Names with only two different letters repeat often, and a symbol may be the id of another gene.
NAMES = st.text("ab", min_size=1, max_size=2)


@st.composite
def named_genes(draw) -> GeneNames:
    ids = draw(st.lists(NAMES, unique=True, max_size=6))
    symbols = draw(st.lists(st.none() | NAMES, min_size=len(ids), max_size=len(ids)))
    return GeneNames(ids=tuple(ids), symbols=tuple(symbols), column="symbol")


@given(named_genes())
def test_shown_names_are_unique_and_identify_the_genes(genes):
    shown = genes.shown(genes.ids)
    assert len(set(shown)) == len(shown)
    assert genes.ids_of(shown) == genes.ids
    assert genes.ids_of(genes.ids) == genes.ids
    for gene, symbol, name in zip(genes.ids, genes.symbols, shown, strict=True):
        if symbol is None or symbol == gene:
            assert name == gene
        else:
            assert name in (symbol, f"{symbol} ({gene})")


@given(named_genes(), NAMES)
def test_name_must_be_an_id_or_the_symbol_of_one_gene(genes, name):
    matching = [gene for gene, symbol in zip(genes.ids, genes.symbols, strict=True) if symbol == name]
    if name in genes.ids:
        assert genes.ids_of(name) == (name,)
    elif len(matching) == 1:
        assert genes.ids_of([name]) == tuple(matching)
    else:
        with pytest.raises(DataError) as caught:
            genes.ids_of([name])
        assert all(gene in caught.value.message for gene in matching[:5])
        assert "\n" not in str(caught.value)
        assert caught.value.hint


@given(st.lists(NAMES, unique=True, max_size=6))
@settings(deadline=None)
def test_without_symbols_names_are_ids(ids):
    genes = GeneNames(ids=tuple(ids))
    assert genes.shown(ids) == list(genes.ids_of(ids)) == ids


def test_messages_suggest_similar_names():
    genes = GeneNames(
        ids=("ENSG1", "ENSG2", "ENSG3", "ENSG4"),
        symbols=("GATA1", "TBCE", "TBCE", None),
        column="symbol",
        place="the model",
        others=frozenset({"ENSG5", "KLF1"}),
    )
    for name, message, hint in (
        ("Gata1", "gene 'Gata1' is not in the model", "var_names or var['symbol']; did you mean GATA1?"),
        ("GATA2", "gene 'GATA2' is not in the model", "did you mean GATA1?"),
        ("zzz", "gene 'zzz' is not in the model", "for example GATA1, TBCE (ENSG2), TBCE (ENSG3)"),
        ("TBCE", "'TBCE' is the symbol of 2 genes: ENSG2, ENSG3", "by its id"),
        ("KLF1", "gene 'KLF1' is in the data, but not in the model", "model was trained on"),
        (None, "gene '' is not in", "for example"),
    ):
        with pytest.raises(DataError) as caught:
            genes.ids_of(["ENSG1", name])
        assert message in caught.value.message
        assert hint in caught.value.hint
    with pytest.raises(DataError, match=r"2 genes \(KLF1, Gata1\) are not in") as caught:
        genes.ids_of(["KLF1", "Gata1"])
    assert caught.value.hint.endswith("did you mean GATA1?")
    assert genes.ids_of(["TBCE (ENSG3)", np.str_("GATA1"), "ENSG1"]) == ("ENSG3", "ENSG1")
    assert genes.shown(["ENSG4", "ENSG2", "elsewhere"]) == ["ENSG4", "TBCE (ENSG2)", "elsewhere"]


# --- names in data ----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "file"])
def store(request, tmp_path):
    var = pd.DataFrame(
        {
            "symbol": pd.Categorical(["GATA1", "TBCE", "TBCE", " ", None]),
            "entrez": [2623.0, 6905.0, np.nan, 1.0, 2.0],
            "empty": pd.array([None] * 5, dtype="string"),
        },
        index=[f"ENSG{i}" for i in range(5)],
    )
    adata = ad.AnnData(np.ones((3, 5), dtype=np.float32), var=var)
    adata.var["empty"] = adata.var["empty"].astype(object).where(adata.var["empty"].notna(), "")
    if request.param == "memory":
        return open_store(adata)
    path = tmp_path / "cells.h5ad"
    adata.write_h5ad(path)
    return open_store(path)


def test_symbols_are_read_from_var(store):
    genes = gene_names(store, "symbol")
    assert genes.symbols == ("GATA1", "TBCE", "TBCE", None, None)
    assert genes.shown(genes.ids) == ["GATA1", "TBCE (ENSG1)", "TBCE (ENSG2)", "ENSG3", "ENSG4"]
    assert gene_names(store, "entrez").ids_of(["2623", "6905", "ENSG2"]) == ("ENSG0", "ENSG1", "ENSG2")
    assert gene_names(store).ids_of("ENSG4") == ("ENSG4",)


def test_only_genes_of_the_model_can_be_named(store):
    genes = gene_names(store, "symbol", ids=("ENSG1", "ENSG9"))
    # The model has only one of the two genes with the symbol TBCE.
    assert genes.ids_of(["TBCE", "ENSG9"]) == ("ENSG1", "ENSG9")
    assert genes.shown(["ENSG1", "ENSG9"]) == ["TBCE", "ENSG9"]
    for name in ("GATA1", "ENSG0"):
        with pytest.raises(DataError, match="in the data, but not in the model"):
            genes.ids_of([name])


def test_columns_without_symbols_are_refused(store):
    with pytest.raises(DataError, match="no column 'name' in var") as caught:
        gene_names(store, "name")
    assert caught.value.hint.startswith("--gene-symbols takes one of: ")
    assert "symbol" in caught.value.hint
    assert "entrez" not in caught.value.hint
    with pytest.raises(DataError, match=r"var\['empty'\] has no value"):
        gene_names(store, "empty")


def test_session_has_the_gene_names_of_its_model(trained):
    adata = ad.read_h5ad(trained.data)
    adata.var["symbol"] = [f"s{i}" for i in range(adata.n_vars)]
    session = Session.open(adata, trained.model, device="cpu", gene_symbols="symbol")
    assert session.genes.ids == tuple(session.model.genes)
    first = session.model.genes[0]
    symbol = adata.var["symbol"][first]
    assert session.genes.shown([first]) == [symbol]
    assert session.genes.ids_of([symbol]) == (first,)
    assert Session.open(adata, trained.model, device="cpu").genes.shown([first]) == [first]
    with pytest.raises(DataError, match="no column 'name' in var"):
        Session.open(adata, trained.model, device="cpu", gene_symbols="name")


def test_gene_list_of_symbols_selects_the_training_genes(store, tmp_path):
    counts, path = read_counts(store), tmp_path / "genes.txt"
    chosen = DataConfig(genes=f"@{path}")
    path.write_text("ENSG4\nGATA1\n")
    names = gene_names(store, "symbol")
    assert list(select_genes(counts, np.arange(3), chosen, names)[0]) == [0, 4]
    for text, message in (("GATA2\nENSG1\n", "gene 'GATA2' is not in the data"), ("TBCE\n", "the symbol of 2 genes")):
        path.write_text(text)
        with pytest.raises(DataError, match=message) as caught:
            select_genes(counts, np.arange(3), chosen, names)
        assert caught.value.message.startswith(str(path))
    path.write_text("GATA1\nENSG4\n")
    with pytest.raises(DataError, match="gene 'GATA1' is not in the data"):
        select_genes(counts, np.arange(3), chosen)


# --- lists of genes ---------------------------------------------------------------------------------------------------


@given(st.lists(st.text("abc-.", min_size=1, max_size=4), min_size=1, max_size=6))
def test_list_of_genes_is_parsed_without_duplicates(names):
    assert parse_genes("--genes", " ,".join(names)) == tuple(dict.fromkeys(names))


def test_names_in_a_gene_file_may_contain_commas(tmp_path):
    path = tmp_path / "genes.txt"
    path.write_text("\ufeffA,B\r\nC\n\n C \n", encoding="utf-8")
    assert parse_genes("--genes", f"@{path}") == ("A,B", "C")
    for text in (f"@{tmp_path / 'nowhere.txt'}", f"@{tmp_path}", "", " , "):
        with pytest.raises(ConfigError) as caught:
            parse_genes("--genes", text)
        assert caught.value.hint.endswith("use @FILE if a name contains a comma")
