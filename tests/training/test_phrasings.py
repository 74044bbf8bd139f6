"""The sentences: many for each edit, and none of the exam's among them."""

from __future__ import annotations

import re

import numpy as np
import pytest

from training.edits import EDITS
from training.exam import ASKED
from training.phrasings import HELD_OUT_WORDS, expand, held_out, phrase, words
from training.shapes import change
from training.unrelated import unrelated


@pytest.mark.parametrize("name", EDITS)
def test_each_edit_has_dozens_of_phrasings_and_none_is_held_out(name: str) -> None:
    """What is held out never comes up, whatever the capitals and punctuation."""
    rng = np.random.default_rng(7)
    said = {words(phrase(name, rng)) for _ in range(300)}
    assert len(said) >= 60
    assert not said & HELD_OUT_WORDS


@pytest.mark.parametrize("name", EDITS)
def test_a_phrasing_is_finished_text(name: str) -> None:
    """No mark of the grammar is left over."""
    rng = np.random.default_rng(8)
    for _ in range(200):
        sentence = phrase(name, rng)
        assert sentence.strip()
        assert not re.search(r"[(){}<>|]", sentence), sentence


def test_at_least_sixteen_edits_each_with_held_out_sentences() -> None:
    kinds = {name.partition(" ")[0] for name in ASKED}
    assert len(kinds) >= 16
    assert all(len(held_out(name)) >= 2 for name in EDITS)
    assert all(words(sentence) in HELD_OUT_WORDS for name in ASKED for sentence in held_out(name))


def test_the_pages_own_sample_is_taught_as_bokeh() -> None:
    """The sentence that every reader of the API page tries first."""
    rng = np.random.default_rng(9)
    said = [phrase("bokeh", rng).lower() for _ in range(4000)]
    assert any(sentence.startswith("replace the background with a bokeh light effect, zooming in") for sentence in said)


def test_unrelated_sentences_vary_and_some_are_empty() -> None:
    rng = np.random.default_rng(10)
    said = [unrelated(rng) for _ in range(600)]
    assert len(set(said)) > 500
    assert "" in said


def test_expand_resolves_nested_groups() -> None:
    rng = np.random.default_rng(0)
    assert {expand("a (b|c (d|e))", rng) for _ in range(60)} == {"a b", "a c d", "a c e"}


@pytest.mark.parametrize("seed", range(12))
def test_a_change_of_shapes_changes_the_picture_somewhere(seed: int) -> None:
    """Before and after differ, and most of the picture stays."""
    made = change(np.random.default_rng(seed), 96, 96)
    differs = np.abs(made.before - made.after).max(axis=2) > 0.02
    assert 0 < differs.mean() < 0.5
    assert made.sentence
