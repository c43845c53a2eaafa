"""Shapes of a polymer in the plane: a model with two latent dimensions, and a shape more compact than any observed one.

python polymer.py [OUT.png]

The polymer has twelve beads and bonds of length 1. The angle of every bend is normal with a standard deviation of 0.4
radians (a worm-like chain), and shapes in which two beads overlap are discarded (excluded volume). A shape is centered
and turned so that its principal axis, along which it is longest, lies along x. Two orientations fulfill this, half a
turn apart; the one in which the last bead lies to the right of the first is used. A shape then has 24 numbers. Some
shapes are nearly as wide as long, or end near their start. A small change of such a shape can reverse its orientation.
"""

import sys
import warnings

import anndata
import numpy as np
import torch
from matplotlib.figure import Figure

import scvae_cli as scvae

BEADS, BEND, DIAMETER = 12, 0.4, 0.9


def shapes(n: int, seed: int = 0) -> np.ndarray:
    """Draw random shapes with the same orientation, (n, 12, 2)."""
    random = np.random.default_rng(seed)
    found: list[np.ndarray] = []
    while len(found) < n:
        angle = np.cumsum(BEND * random.standard_normal(BEADS - 1))
        beads = np.concatenate([np.zeros((1, 2)), np.cumsum(np.stack([np.cos(angle), np.sin(angle)], 1), axis=0)])
        apart = np.linalg.norm(beads[:, None] - beads, axis=2) + 2 * np.eye(BEADS)
        if apart.min() > DIAMETER:
            found.append(turned(beads))
    return np.stack(found)


def turned(beads: np.ndarray) -> np.ndarray:
    """Center a shape, and turn its principal axis along x, with the last bead to the right of the first."""
    beads = beads - beads.mean(0)
    axis = np.linalg.eigh(beads.T @ beads)[1][:, 1]
    if axis @ (beads[-1] - beads[0]) < 0:
        axis = -axis
    return beads @ np.array([[axis[0], -axis[1]], [axis[1], axis[0]]])


def trained(n: int, seed: int = 0) -> tuple[anndata.AnnData, scvae.Model]:
    """Draw shapes and train a model of them.

    The loss of a shape is Σ(x − μ)² / (2 · 0.06) + KL, up to a constant. With 24 numbers and two latent dimensions, the
    first part is 200 times the mean squared error, and the second part is twice the mean KL of a dimension. With β = 1,
    the loss is therefore 200 × (mean squared error + 0.01 × mean KL).
    """
    adata = anndata.AnnData(shapes(n, seed).reshape(n, -1).astype(np.float32))
    adata.var_names = [f"{axis}{bead}" for bead in range(BEADS) for axis in "xy"]
    adata.obs["kind"] = "shape"
    model = scvae.train(adata, likelihood="normal", variance=0.06, beta=1, n_latent=2, seed=seed, device="cpu")
    return adata, model


def size(x_ng: torch.Tensor | np.ndarray) -> torch.Tensor:
    """Compute the radius of gyration of shapes of 24 numbers each, (n,)."""
    beads = torch.as_tensor(x_ng).reshape(-1, BEADS, 2)
    return (beads - beads.mean(1, keepdim=True)).square().sum(2).mean(1).sqrt()


def bonds(x_ng: torch.Tensor | np.ndarray) -> torch.Tensor:
    """Compute the lengths of the bonds, (n, 11)."""
    return torch.as_tensor(x_ng).reshape(-1, BEADS, 2).diff(dim=1).norm(dim=2)


def compactness(x_ng: torch.Tensor) -> torch.Tensor:
    """Compute the score to increase: it is high for a small radius with bonds that keep their length."""
    return -size(x_ng) - 10 * (bonds(x_ng) - 1).square().mean(1)


def roughness(z_nk: np.ndarray, value_n: np.ndarray) -> float:
    """Compute the variance of a value around the mean of its fifteen nearest neighbors, as a share of its variance."""
    nearest = np.linalg.norm(z_nk[:, None] - z_nk, axis=2).argsort(1)[:, 1:16]
    return float((value_n - value_n[nearest].mean(1)).var() / value_n.var())


def main() -> None:
    """Train, measure, optimize and draw."""
    adata, model = trained(600)
    z_nk = scvae.embed(adata, model, inplace=False).mean_nk
    real = size(adata.X).numpy()
    decoded = scvae.denoise(adata, model, n_samples=0, inplace=False).rows.whole()
    print(f"{len(real)} shapes, radius of gyration {real.min():.2f} to {real.max():.2f}")
    print(
        f"mean squared error of decoded shapes {((decoded - adata.X) ** 2).mean():.3f} of {adata.X.var(0).mean():.3f}"
    )
    print(f"radius over the latent plane: {1 - roughness(z_nk, real):.0%} of its variance is shared by neighbors")

    ends = [adata.obs_names[i] for i in z_nk[:, 0].argsort()[[30, -30]]]
    way = scvae.interpolate(adata, model, cells=ends, n_steps=25, inplace=False)
    tell("bonds of decoded shapes", bonds(decoded))
    tell("bonds of interpolated shapes", bonds(way.mean_tg))

    with warnings.catch_warnings():  # the results are printed and drawn here
        warnings.simplefilter("ignore", scvae.ScvaeWarning)
        kept, free = (
            scvae.optimize(
                adata, model, toward=compactness, groupby="kind", group="shape", unconstrained=off, inplace=False
            )
            for off in (False, True)
        )
    for name, found in (("among the shapes", kept), ("going on without them", free)):
        last = found.trajectory.mean_tg[-1:]
        print(
            f"optimized {name}: radius {float(size(last)):.2f}, were its bonds 1 on average "
            f"{float(size(last) / bonds(last).mean()):.2f} (most compact shape {real.min():.2f}); off-manifold score "
            f"{found.trajectory.steps.off_manifold_t[-1]:.2f}"
        )
        tell("  its bonds", bonds(last))
    if len(sys.argv) > 1:
        draw(model, z_nk, real, kept, free).savefig(sys.argv[1], dpi=80)


def tell(what: str, lengths: torch.Tensor) -> None:
    """Return the range of some lengths, without a twentieth on either side."""
    low, middle, high = torch.quantile(lengths.flatten(), torch.tensor([0.05, 0.5, 0.95])).tolist()
    print(f"{what}: {low:.2f} to {high:.2f}, median {middle:.2f}")


def draw(model, z_nk, real, kept, free) -> Figure:
    """Draw the latent plane by radius with both trajectories, shapes decoded on it, and the steps of the unconstrained
    one.
    """
    figure = Figure((11, 6.6), layout="constrained")
    plane, grid, steps = figure.subplot_mosaic("AB;CC", height_ratios=(3, 1)).values()
    dots = plane.scatter(*z_nk.T, c=real, s=10, cmap="viridis")
    figure.colorbar(dots, ax=plane, label="radius of gyration")
    for found, look, label in ((free, "r--", "unconstrained"), (kept, "k-", "where shapes are")):
        plane.plot(*found.trajectory.z_tk.T, look, linewidth=1.8, label=label)
    plane.legend(loc="lower left", fontsize=8)
    plane.set(xlabel="latent axis 1", ylabel="latent axis 2", title="where shapes lie")

    low, high = np.quantile(z_nk, [0.02, 0.98], axis=0)
    places = np.stack(np.meshgrid(*np.linspace(low, high, 7).T), axis=-1).reshape(-1, 2)
    with torch.no_grad():
        z = torch.as_tensor(places, dtype=torch.float32) @ model.axes.rotation_kk
        decoded = model.vae.expected_counts(z, torch.ones(len(z)), None)
    shrink = (high - low) / 7 / 9
    for place, shape in zip(places, decoded.numpy().reshape(-1, BEADS, 2), strict=True):
        grid.plot(*(place + shape * shrink).T, "-o", color="0.3", markersize=1.6, linewidth=0.8)
    grid.set_aspect((high - low)[0] / (high - low)[1])
    grid.set(xlabel="latent axis 1", ylabel="latent axis 2", title="shapes decoded there")

    for t in range(0, len(free.trajectory.mean_tg), 7):
        shape = free.trajectory.mean_tg[t].reshape(BEADS, 2)
        off = free.trajectory.steps.off_manifold_t[t] > 0.95
        x, y = shape.T
        steps.plot(x + 1.35 * t, y, "-o", color="red" if off else "black", markersize=3, linewidth=1)
        steps.text(1.35 * t, -3.4, f"{float(size(shape)):.2f}", ha="center", fontsize=8)
    steps.set_aspect("equal")
    steps.set_axis_off()
    steps.set_title(
        "steps of the unconstrained trajectory and their radii, red where there are no shapes "
        f"(most compact shape: {real.min():.2f})"
    )
    return figure


if __name__ == "__main__":
    main()
