"""How `embed` runs, and what the command line prints about the result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scvae_cli.question import Question
from scvae_cli.tools.embed.embedding import Embedding, embed
from scvae_cli.tools.embed.options import EmbedOptions


class Embed(Question[EmbedOptions, Embedding]):
    """Embed the cells."""

    def planned(self) -> list[str]:
        return [f"obsm/{key}" for key in (self.names.embedding, self.names.latent, self.names.latent_var)]

    def answer(self) -> Embedding:
        return embed(self.session, self.options)

    def facts(self, result: Embedding) -> dict[str, Any]:
        n_cells, n_latent = result.mean_nk.shape
        return {
            "n_cells": n_cells,
            "space": self.options.space,
            "n_dimensions": result.position_nj.shape[1],
            "n_latent": n_latent,
            "refined_gain": result.gain,
        }

    def text(self, result: Embedding, facts: dict[str, Any]) -> str:
        where = f"{facts['n_dimensions']} dimensions of {facts['space']} space"
        lines = [f"embedded {facts['n_cells']:,} cells in {where}, from {facts['n_latent']} latent dimensions"]
        if result.gain is not None:
            steps = self.options.refine
            lines.append(f"{steps} refinement steps raised the ELBO by {result.gain:.2f} nats per cell")
        return "\n".join(lines)

    def notes(self, result: Embedding) -> Sequence[str]:  # noqa: ARG002  # the axes are the model's
        ties = (
            self.session.model.axes.near_ties()
            if self.options.space == "latent" and self.options.axes == "canonical"
            else []
        )
        if not ties:
            return ()
        named = ", ".join(f"{axis + 1} and {axis + 2}" for axis in ties)
        return [f"axes {named} explain nearly the same variance: another training may swap or mix them"]

    def warnings(self, result: Embedding) -> Sequence[str]:  # noqa: ARG002  # depends on the data alone
        key, model = self.session.model.config.data.batch_key, self.session.model
        if self.options.space == "latent" or not model.batches or key in self.session.store.obs_keys:
            return ()
        return [
            f"obs has no column {key!r}, which holds the batches of the training: the cells are compared with an "
            "average batch, so their batch effect is not corrected"
        ]

    def next_step(self, result: Embedding) -> str:  # noqa: ARG002
        return f'sc.pp.neighbors(adata, use_rep="{self.names.embedding}")'
