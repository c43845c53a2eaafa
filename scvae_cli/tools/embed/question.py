"""The steps of `embed`, and what the command line prints about the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from scvae_cli.amounts import amount, noun
from scvae_cli.data.gene_names import gene_names
from scvae_cli.data.obs_columns import is_missing, read_numbers
from scvae_cli.errors import DataError
from scvae_cli.question import Question
from scvae_cli.tools.embed.coloring import Groups, colorings
from scvae_cli.tools.embed.embedding import Embedding, embed
from scvae_cli.tools.embed.options import EmbedOptions
from scvae_cli.tools.embed.umap_leiden import check_enough_cells, check_igraph, umap_leiden
from scvae_cli.verb import Request

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Embed(Question[EmbedOptions, Embedding]):
    """Embed the cells."""

    @classmethod
    def check_files(cls, request: Request) -> None:
        if request.options.leiden:
            check_igraph()

    def prepare(self) -> None:
        options, session = self.options, self.session
        if options.needs_neighbors:
            check_enough_cells(session.counts.n_cells)
        if options.plot is None:
            return
        self.color = options.color or self._default_color()
        # The new clusters do not exist yet, so they are not read here. A column of obs with the name of the new
        # clusters holds older clusters.
        named = [name for name in self.color if not (options.leiden and name == self.names.leiden)]
        if not options.leiden and self.names.leiden in named and self.names.leiden not in session.store.obs_keys:
            raise DataError(f"there are no clusters {self.names.leiden!r} to color by", "add --leiden")
        self.colorings = colorings(
            session.store,
            session.kept,
            named,
            genes=gene_names(session.store, options.gene_symbols),
            source=session.counts.source,
            real=session.counts.real,
        )

    def _default_color(self) -> tuple[str, ...]:
        model = self.session.model
        keys = model.config.data.batch_keys if model.batches else ()
        batches = tuple(key for key in keys if key in self.session.store.obs_keys)
        return (self.names.leiden, *batches) if self.options.leiden else batches

    def planned(self) -> list[str]:
        planned = [f"obsm/{key}" for key in (self.names.embedding, self.names.latent, self.names.latent_var)]
        planned += [f"obsm/{self.names.umap}"] if self.options.needs_umap else []
        return planned + ([f"obs/{self.names.leiden}"] if self.options.leiden else [])

    def answer(self) -> Embedding:
        options, progress = self.options, self.shell.progress
        result = embed(self.session, options)
        if not options.needs_neighbors:
            return result
        found = umap_leiden(
            result.position_nj,
            umap=options.needs_umap,
            leiden=options.leiden,
            n_neighbors=options.n_neighbors,
            resolution=options.resolution,
            seed=options.seed,
            progress=progress,
        )
        return replace(result, umap_leiden=found)

    def record(self, result: Embedding) -> dict[str, Any]:
        return super().record(result) | ({} if result.umap_leiden is None else result.umap_leiden.settings)

    def figure(self, result: Embedding) -> Figure:
        from scvae_cli.tools.embed.figure import umap_figure

        found = result.umap_leiden
        assert found is not None, "--plot implies --umap"
        assert found.umap_n2 is not None, "--plot implies --umap"
        known = dict(self.colorings)
        if found.cluster_n is not None:
            label_n, order = np.asarray(found.cluster_n, dtype=object), tuple(found.cluster_n.categories)
            known[self.names.leiden] = Groups(title=self.names.leiden, label_n=label_n, order=order, on_map=True)
        return umap_figure(found.umap_n2, [known[name] for name in self.color])

    def facts(self, result: Embedding) -> dict[str, Any]:
        n_cells, n_latent = result.mean_nk.shape
        clusters = None if result.umap_leiden is None else result.umap_leiden.cluster_n
        return {
            "n_cells": n_cells,
            "space": self.options.space,
            "n_dimensions": result.position_nj.shape[1],
            "n_latent": n_latent,
            "refined_gain": result.gain,
            "n_clusters": None if clusters is None else len(clusters.categories),
        }

    def text(self, result: Embedding, facts: dict[str, Any]) -> str:
        counted = {"cell": facts["n_cells"], "dimension": facts["n_dimensions"], "latent dimension": facts["n_latent"]}
        cells, dimensions, latent = (f"{n:,} {name}{'' if n == 1 else 's'}" for name, n in counted.items())
        lines = [f"embedded {cells} in {dimensions} of {facts['space']} space, from {latent}"]
        if result.gain is not None:
            steps = self.options.refine
            lines.append(f"{amount(steps, 'refinement step')} raised the ELBO by {result.gain:.2f} nats per cell")
        found = result.umap_leiden
        if found is not None:
            results = ["UMAP"] if self.options.needs_umap else []
            settings = [f"{amount(found.n_neighbors, 'neighbor')}"]
            if (n_clusters := facts["n_clusters"]) is not None:
                results.append("1 Leiden cluster" if n_clusters == 1 else f"{n_clusters} Leiden clusters")
                settings.append(f"resolution {self.options.resolution:g}")
            lines.append(f"{' and '.join(results)} ({', '.join(settings)})")
        return "\n".join(lines)

    def notes(self, result: Embedding) -> Sequence[str]:
        notes = []
        ties = self.session.model.axes.near_ties()
        if ties and self.options.space == "latent" and self.options.axes == "canonical":
            named = ", ".join(f"{axis + 1} and {axis + 2}" for axis in ties)
            notes.append(f"axes {named} explain nearly the same variance: another training may swap or mix these axes")
        found = result.umap_leiden
        if found is not None and found.n_neighbors < self.options.n_neighbors:
            notes.append(
                f"there are fewer than {self.options.n_neighbors} cells, so all cells are neighbors of each other"
            )
        return notes

    def warnings(self, result: Embedding) -> Sequence[str]:  # noqa: ARG002  # the warnings depend on the data alone
        session, found = self.session, []
        if self.options.space == "latent" or not session.model.conditioned or session.model.vae.n_mapped:
            return ()  # If batches were mapped onto the model, the session already warns about cells without a batch.
        data = session.model.config.data
        batch = ("batch", "the batches", "an average batch, so batch effects are")
        value = ("value", "a covariate", "the mean of the training, so the effect of the covariate is")
        for key in (*data.batch_keys, *data.continuous_keys):
            one, several, fate = batch if key in data.batch_keys else value
            fate = f"compared with {fate} not corrected"
            if key not in session.store.obs_keys:
                found.append(f"obs has no column {key!r}, which holds {several} of the training: the cells are {fate}")
                continue
            of_batch = key in data.batch_keys
            values = session.store.obs_column(key) if of_batch else read_numbers(session.store, key, partly=True)
            n_missing = int(is_missing(values[session.kept]).sum())
            if n_missing:
                missing = f"{amount(n_missing, 'cell has', 'cells have')} no {one} in obs[{key!r}]"
                found.append(f"{missing}: {noun(n_missing, 'it is', 'they are')} {fate}")
        return found

    def next_step(self, result: Embedding) -> str:
        found = result.umap_leiden
        if found is None:
            return f'sc.pp.neighbors(adata, use_rep="{self.names.embedding}")'
        if found.umap_n2 is None:
            return f'adata.obs["{self.names.leiden}"].value_counts()'
        columns = [name for name in self.options.color or self._default_color() if name in self.session.store.obs_keys]
        color = self.names.leiden if self.options.leiden else next(iter(columns), None)
        colored = "" if color is None else f', color="{color}"'
        return f'sc.pl.embedding(adata, basis="{self.names.umap.removeprefix("X_")}"{colored})'
