"""Continue with scvae's results in scanpy: clusters, a UMAP and a dot plot of denoised expression.

python after_scvae.py DATA.h5ad
"""

import sys

import scanpy as sc

adata = sc.read_h5ad(sys.argv[1])
sc.pp.neighbors(adata, use_rep="X_scvae")
sc.tl.umap(adata)
sc.tl.leiden(adata, flavor="igraph", n_iterations=2, directed=False)

ax = sc.pl.umap(adata, color=["bulk_labels", "leiden"], wspace=0.7, show=False)
ax[0].figure.savefig("umap.png", dpi=150, bbox_inches="tight")

modelled = adata[:, adata.var["scvae_modelled"]].copy()
if "scvae_denoised" in modelled.obsm:  # the model contains only some of the genes
    modelled.layers["scvae_denoised"] = modelled.obsm["scvae_denoised"]
markers = ["CD3D", "CD8A", "GNLY", "CD79A", "LYZ", "CST3", "FCER1A", "PRSS57"]
markers = [gene for gene in markers if gene in modelled.var_names]
# Expected counts are never exactly zero. A cell counts as expressing if its expected count is at least 0.5.
plot = sc.pl.dotplot(
    modelled,
    markers,
    groupby="bulk_labels",
    layer="scvae_denoised",
    standard_scale="var",
    expression_cutoff=0.5,
    return_fig=True,
)
plot.savefig("dotplot.png", dpi=150, bbox_inches="tight")
