"""Sentences that ask for nothing the embedded model can do: it must give the picture back.

Requests about things and people, descriptions, small talk, prose, and gibberish. Knows sentences only.
"""

# ruff: noqa: E501, SIM905 (a pattern reads best on one line, and two hundred words in a few)
from __future__ import annotations

import re
from functools import cache
from pydoc_data import topics
from typing import Final

import numpy as np

from training.phrasings import BEFORE, expand

THINGS: Final = tuple(
    (
        "cat dog horse bird fish tiger elephant rabbit cow sheep duck butterfly dragon dinosaur car truck bus bicycle train boat ship "
        "airplane helicopter rocket motorcycle house castle tower bridge church temple building window door roof wall fence street road "
        "tree flower rose grass forest mountain river lake ocean beach island desert waterfall cloud rain snow fog rainbow lightning storm "
        "man woman person child baby boy girl lady king queen soldier doctor chef pirate robot alien zombie wizard astronaut superhero "
        "hat cap helmet glasses sunglasses shirt jacket dress suit tie scarf shoes boots gloves ring necklace watch umbrella bag backpack "
        "beard mustache hair eyes face smile nose mouth hand arm leg tattoo makeup lipstick hairstyle ponytail "
        "table chair sofa bed lamp candle clock mirror book phone computer keyboard camera guitar piano drum cup bottle glass plate "
        "apple banana orange pizza burger cake bread coffee tea sandwich ice cream sign logo text letter flag balloon ball kite toy "
        "statue fountain bench garden park city village kitchen office room stage crowd football basketball sword crown mask wings tail "
        "mountain bike traffic light swimming pool teddy bear christmas tree hot air balloon santa claus moustache snowman pumpkin"
    ).split()
)
QUALITIES: Final = tuple(
    "big small tall old young happy sad angry funny scary beautiful ugly modern ancient wooden golden silver plastic metal glass red green blue "
    "yellow black white purple pink orange brown grey tiny huge giant cute wild sleeping running flying dancing smiling broken new shiny "
    "dirty clean wet dry empty full fat thin long short round striped furry elegant french japanese italian medieval futuristic".split()
)
PLACES: Final = (
    "(on the (left|right|table|wall|roof|street|beach|moon|ground|grass|head)|in the (background|sky|middle|corner|foreground|garden|water|kitchen|city|snow)"
    "|next to (the {t}|him|her|me)|behind (the {t}|them|him|her)|under the {t}|over the {t}|near the {t}|in paris|in new york|in tokyo|in space|at the beach|)"
)
REQUESTS: Final = (
    "(add|put|place|insert|draw|include|paint) (a|an|the|some|two|three|another|one more) {q} {t} {p}"
    "|(add|put|place|insert|include) (a|an|some) {t} {p}"
    "|(remove|delete|erase|get rid of|take away|hide|crop out) the {q} {t} {p}|(remove|erase|delete) (the {t}|all {t}s|him|her|the person|the people|the text|the watermark|the {t} and the {t})"
    "|(replace|swap|exchange) the {t} (with|by|for) (a|an) {q} {t}|(change|turn|make|transform) the {t} (into|to) (a|an) {q} {t}|make the {t} {q}"
    "|make (him|her|them|the {t}|the man|the woman|the person) (wear|hold|ride|eat|drive|kiss|hug|watch|look at) (a|an|the) {q} {t}"
    "|make (him|her|them|the {t}) (smile|laugh|cry|jump|run|dance|sleep|look left|look up|close the eyes|sit down|stand up|older|younger|taller|happy|angry)"
    "|give (him|her|the {t}|the man|the woman) (a|an|some) {q} {t}|(a|an|the|one|two) {q} {t} (and|with|near|under|riding|eating|holding) (a|an|the) {q} {t} {p}"
    "|(a|an) {q} {t} {p}|{t}|{t}s and {t}s|{q} {t}|(rotate|flip|mirror|crop|tilt|resize|stretch|upscale|straighten) {i}( by {n} degrees| horizontally| vertically| upside down|)"
    "|(write|print) (the word |)({t}|hello|welcome|{n}) on (the {t}|the wall|it)|move the {t} (to the left|to the right|up|down|closer|away)"
    "|what (is|are) (this|the {t}|in the {t}|these)|who is (he|she|this|the {t})|where (is|was) (this|the {t})|how (are you|old is the {t}|many {t}s are there)|why is the {t} {q}"
    "|count the {t}s|tell me (a joke|a story about a {t}|about the {t})|i (like|love|hate|saw|bought|ate|need|want) (a|an|the|my|your) {q} {t}|hello( there| world|)|good (morning|afternoon|luck)|test|asdf|foo bar|lorem ipsum|hi|ok|yes|no|thank you|what"
    "|the {q} {t} (is|was|looks|seems|runs|jumps) {p}|change the (hairstyle|hair color|pose|expression|outfit|clothes|background to a {t}|angle|perspective|weather|{t})( to {q}|)"
    "|change the background to (a|an|the) {q} {t}|(fix|repair|restore|clean|wash|open|close|break|burn|cut|cook|build|buy|sell) the {t}"
    "|make it (rain|snow|foggy|rainy|stormy|christmas|halloween|bigger|smaller|longer|funny|spicy|delicious|faster|easier|wooden|a {t}|{q} and {q})|translate this to (french|german|spanish)"
    "|(zoom out|pan left|look from above|from behind|bird's eye view|side view|wide angle|close the door|play music|order a pizza|call my mother|book a flight)|as a {q} {t}|dress (him|her) (as|like) a {t}|put (him|her|me|them) (in|on) (a|the) {q} {t}"
)


@cache
def prose() -> tuple[str, ...]:
    """English sentences that come with every Python: the language reference."""
    text = re.sub(r"[*`:|=+\-_\\]{2,}|[`*]", "", "\n".join(topics.topics.values()))
    sentences = re.split(r"(?<=[.!?])\s+", " ".join(text.split()))
    return tuple(sorted({s for s in sentences if 15 < len(s) < 180 and s.isascii()}))


def _gibberish(rng: np.random.Generator) -> str:
    kind = rng.integers(4)
    if kind == 0:
        letters = list("abcdefghijklmnopqrstuvwxyz")
        return " ".join("".join(rng.choice(letters, int(rng.integers(1, 9)))) for _ in range(int(rng.integers(1, 7))))
    if kind == 1:
        return "".join(rng.choice(list("0123456789.,!?#$%&/()=+-_*;: "), int(rng.integers(1, 12))))
    if kind == 2:
        return ""
    chosen = prose()[rng.integers(len(prose()))].split()
    rng.shuffle(chosen)
    return " ".join(chosen[: int(rng.integers(1, 8))])


def unrelated(rng: np.random.Generator) -> str:
    """A random sentence that the model must answer with the unchanged picture."""
    kind = rng.random()
    if kind < 0.12:
        return _gibberish(rng)
    if kind < 0.24:
        return prose()[rng.integers(len(prose()))]
    sentence = expand(REQUESTS, rng)
    if rng.random() < 0.3:
        sentence = expand(BEFORE, rng) + sentence
    sentence = sentence.replace("{p}", expand(PLACES, rng))
    while "{t}" in sentence:
        sentence = sentence.replace("{t}", str(THINGS[rng.integers(len(THINGS))]), 1)
    while "{q}" in sentence:
        quality = str(QUALITIES[rng.integers(len(QUALITIES))]) if rng.random() < 0.7 else ""
        sentence = sentence.replace("{q}", quality, 1)
    sentence = sentence.replace("{n}", str(rng.integers(1, 400))).replace(
        "{i}", expand("(it|the image|the photo)", rng)
    )
    sentence = " ".join(sentence.split())
    if rng.random() < 0.3:
        sentence = sentence[:1].upper() + sentence[1:]
    return sentence + ("." if rng.random() < 0.25 else "")
