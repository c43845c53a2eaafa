"""Changes of genes along a trajectory are computed for curves with known changes."""

from __future__ import annotations

import numpy as np
import pytest

from scvae_cli.tools.trajectory.gene_changes import GeneChanges, gene_changes

T = np.linspace(0, 1, 101)


def rise(at: float, steepness: float = 60.0) -> np.ndarray:
    """A curve that rises from 0 to 1 around a position."""
    return 1 / (1 + np.exp(-(T - at) * steepness))


def changes_of(*curves: np.ndarray) -> GeneChanges:
    return gene_changes(np.stack(curves, axis=1))


def test_rising_and_falling_genes():
    changes = changes_of(1 + 4 * rise(0.8), 9 - 6 * rise(0.2), np.full(101, 5.0), -3 * T)
    np.testing.assert_allclose(changes.effect_g, [4, 6, 0, 3], atol=1e-3)
    np.testing.assert_allclose(changes.net_g, [4, -6, 0, -3], atol=1e-3)
    assert changes.direction_g.tolist()[:2] == ["up", "down"]
    assert changes.direction_g[3] == "down"
    np.testing.assert_allclose(changes.monotonicity_g[[0, 1, 3]], 1)
    assert changes.monotonicity_g[2] == 0
    np.testing.assert_allclose(changes.switch_g[[0, 1, 3]], [80, 20, 50], atol=1)


@pytest.mark.parametrize("at", [0.3, 0.5, 0.7])
def test_peaks_and_dips_switch_at_their_extreme(at):
    bump = np.exp(-(((T - at) / 0.1) ** 2))
    changes = changes_of(2 + 3 * bump, 2 - 3 * bump)
    assert changes.direction_g.tolist() == ["peak", "dip"]
    np.testing.assert_allclose(changes.switch_g, round(100 * at))
    np.testing.assert_allclose(changes.effect_g, 3, atol=0.01)
    assert changes.monotonicity_g.max() < 0.02


def test_gene_that_mostly_returns_is_a_peak_or_a_dip():
    """The gene rises by 10 and falls by 4 or by 6, so its net change is 6 of 10 or 4 of 10."""
    up, peak = (10 * np.interp(T, [0, 0.5, 1], [0, 1, kept]) for kept in (0.6, 0.4))
    changes = changes_of(up, peak, -up, -peak)
    assert changes.direction_g.tolist() == ["up", "peak", "down", "dip"]
    np.testing.assert_allclose(changes.monotonicity_g, [6 / 14, 4 / 16, 6 / 14, 4 / 16], rtol=1e-6)
    # Half of the range is crossed on the way up.
    np.testing.assert_allclose(changes.switch_g, [25, 50, 25, 50], atol=1)


def test_many_turns_lower_the_monotonicity():
    waves = T * 3 + np.sin(12 * np.pi * T)
    changes = changes_of(waves, 3 * T)
    assert changes.direction_g.tolist() == ["up", "up"]
    expected = 3 / np.abs(np.diff(waves)).sum()
    np.testing.assert_allclose(changes.monotonicity_g, [expected, 1])


def test_reversing_the_trajectory_mirrors_the_changes():
    y_tg = np.random.default_rng(0).normal(size=(30, 200)).cumsum(0)
    forth, back = gene_changes(y_tg), gene_changes(y_tg[::-1])
    np.testing.assert_allclose(forth.effect_g, back.effect_g)
    np.testing.assert_allclose(forth.net_g, -back.net_g)
    np.testing.assert_allclose(forth.monotonicity_g, back.monotonicity_g)
    mirrored = {"up": "down", "down": "up", "peak": "peak", "dip": "dip"}
    assert [mirrored[d] for d in forth.direction_g] == back.direction_g.tolist()
    assert set(forth.direction_g) == {"up", "down", "peak", "dip"}
    assert ((forth.monotonicity_g >= 0) & (forth.monotonicity_g <= 1)).all()
    assert ((forth.switch_g >= 0) & (forth.switch_g < 30)).all()


def test_two_steps_are_sufficient():
    changes = gene_changes(np.array([[0.0, 1.0, 2.0], [1.0, 0.0, 2.0]]))
    assert changes.direction_g.tolist()[:2] == ["up", "down"]
    assert changes.switch_g.tolist() == [1, 1, 0]
