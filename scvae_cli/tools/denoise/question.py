"""How `denoise` runs, and what the command line prints about the result."""

from __future__ import annotations

from typing import Any

from scvae_cli.data.slots import Slot
from scvae_cli.question import Question
from scvae_cli.tools.denoise.denoising import Denoised, denoise
from scvae_cli.tools.denoise.options import DenoiseOptions


class Denoise(Question[DenoiseOptions, Denoised]):
    """Denoise the counts."""

    def prepare(self) -> None:
        named = self.options.genes
        self.genes = None if named is None else self.session.genes.ids_of(named)

    def planned(self) -> list[str]:
        return [f"layers/{self.names.denoised}", f"var/{self.names.modelled}"]

    def answer(self) -> Denoised:
        session, progress = self.session, self.shell.progress
        file_genes = session.store.gene_names
        return denoise(session.model, session.counts, file_genes, self.options, genes=self.genes, progress=progress)

    def record(self, result: Denoised) -> dict[str, Any]:
        return super().record(result) | {"genes": self.genes}

    def slots(self, result: Denoised) -> list[Slot]:
        n_cells, n_genes = result.rows.shape
        mebibytes = result.n_bytes / 2**20
        self.shell.info(f"writing {n_cells:,} × {n_genes:,} values, {mebibytes:,.0f} MiB before compression")
        return result.slots(self.names)

    def facts(self, result: Denoised) -> dict[str, Any]:
        n_cells, n_genes = result.rows.shape
        n_modelled = int(result.modelled.sum())
        return {"n_cells": n_cells, "n_genes": n_genes, "n_genes_modelled": n_modelled, "n_bytes": result.n_bytes}

    def text(self, result: Denoised, facts: dict[str, Any]) -> str:  # noqa: ARG002  # they say it all
        unit = "counts" if self.session.model.of_counts else "values"
        what = "each cell's own rates" if self.options.estimate == "cell" else f"expected {unit}"
        samples = self.options.n_samples
        how = f"mean of {samples} posterior samples" if samples else "at the posterior mean"
        return f"denoised {facts['n_cells']:,} cells × {facts['n_genes_modelled']:,} genes: {what}, {how}"

    def next_step(self, result: Denoised) -> str:
        if not result.modelled.all():
            return f'adata[:, adata.var["{self.names.modelled}"]] selects the genes that were denoised'
        return f'sc.pl.dotplot(adata, genes, groupby=..., layer="{self.names.denoised}")'
