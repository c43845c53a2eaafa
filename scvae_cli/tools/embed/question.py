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
        return [f"obsm/{self.names.embedding}", f"obsm/{self.names.latent_var}"]

    def answer(self) -> Embedding:
        return embed(self.session.model, self.session.counts, self.options, progress=self.shell.progress)

    def facts(self, result: Embedding) -> dict[str, Any]:
        n_cells, n_latent = result.mean_nk.shape
        return {"n_cells": n_cells, "n_latent": n_latent, "refined_gain": result.gain}

    def text(self, result: Embedding, facts: dict[str, Any]) -> str:
        lines = [f"embedded {facts['n_cells']:,} cells in {facts['n_latent']} latent dimensions"]
        if result.gain is not None:
            steps = self.options.refine
            lines.append(f"{steps} refinement steps raised the ELBO by {result.gain:.2f} nats per cell")
        return "\n".join(lines)

    def notes(self, result: Embedding) -> Sequence[str]:  # noqa: ARG002  # the axes are the model's
        ties = self.session.model.axes.near_ties() if self.options.axes == "canonical" else []
        if not ties:
            return ()
        named = ", ".join(f"{axis + 1} and {axis + 2}" for axis in ties)
        return [f"axes {named} explain nearly the same variance: another training may swap or mix them"]

    def next_step(self, result: Embedding) -> str:  # noqa: ARG002
        return f'sc.pp.neighbors(adata, use_rep="{self.names.embedding}")'
