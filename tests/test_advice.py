"""The command that a diagnosis recommends is on the page of the diagnosis, and contradicts no verdict."""

from __future__ import annotations

from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scvae_cli.config import RunConfig
from scvae_cli.tools.diagnose.advice import ADVICE, Command, lower_beta
from scvae_cli.tools.diagnose.verdict import LEVELS, Verdict, next_command, page

CONFIG = RunConfig.of({"beta": 2.0, "n_latent": 10, "n_hidden": 64})
VALUES = {"beta": 2.0, "lower": lower_beta(2.0), "best": "PCA", "worse": "the vote is", "better": "ARI is"}
RANKED = {finding: rank for rank, finding in enumerate(ADVICE)}


def verdict(finding: str, level: str) -> Verdict:
    return Verdict(topic=finding or level, level=level, sentence="as found", finding=finding, values=VALUES)


def command_of(finding: str) -> Command | None:
    made = ADVICE[finding].command
    return None if made is None else made(CONFIG)


def expected(verdicts: list[Verdict]) -> Command:
    """Return the command of the verdict with the worst level; of several such verdicts, the first in the table."""
    for level in reversed(LEVELS):
        for finding in ADVICE:
            if any(v.level == level and v.finding == finding for v in verdicts) and command_of(finding):
                return command_of(finding)
    return Command(verb="embed")


def check(verdicts: list[Verdict]) -> None:
    found = next_command(verdicts, CONFIG)
    assert found == expected(verdicts)
    given = [command for v in verdicts if v.finding and (command := command_of(v.finding))]
    assert found in given if given else found == Command(verb="embed")


def test_next_command_belongs_to_the_worst_of_three_verdicts():
    for findings in combinations(ADVICE, 3):
        for levels in product(("watch", "poor"), repeat=3):
            check([verdict(finding, level) for finding, level in zip(findings, levels, strict=True)])


@given(st.dictionaries(st.sampled_from(list(ADVICE)), st.sampled_from(LEVELS[1:])))
def test_next_command_is_one_of_the_commands_of_the_verdicts(found):
    verdicts = [Verdict(topic="fine", level="good", sentence="all is well")]
    check([*verdicts, *(verdict(finding, level) for finding, level in found.items())])


def test_next_command_is_embed_if_all_verdicts_are_good():
    assert next_command([Verdict(topic="fine", level="good", sentence="all is well")], CONFIG) == Command(verb="embed")


@pytest.mark.parametrize("finding", ADVICE)
def test_text_of_advice_names_the_options_of_its_command(finding):
    text = verdict(finding, "poor").remedy
    command = command_of(finding)
    assert "{" not in text
    if command is None:
        return
    for name, value in command.options.items():
        assert f"--{name.replace('_', '-')}" in text
        if finding not in ("denoising", "labels", "labels in most measures", "genes"):
            assert str(value) in text
    assert command.verb != "sweep" or "sweep" in text
    assert command.verb != "embed" or "embed" in text


def test_texts_of_verdicts_contain_no_command():
    text = page([verdict(finding, "poor") for finding in ADVICE])
    assert "scvae " not in text


def test_advice_never_recommends_opposite_changes():
    texts = " ".join(verdict(finding, "poor").remedy for finding in ADVICE)
    assert "higher --beta" not in texts
    assert "lower --n-latent" not in texts
    assert [finding for finding in ADVICE if "--flat" in ADVICE[finding].text] == ["latent distances"]
    assert ADVICE["latent distances"].command is None, "--flat helps only users of the latent space itself"
