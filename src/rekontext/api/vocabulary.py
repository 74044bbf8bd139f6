"""How another vendor calls our parameters and the values of some: in orders, and in what is wrong with them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from rekontext.api.problems import Problem


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """One vendor's.

    Attributes:
        names: ours -> theirs, for every parameter that it has.
        values: by our name, theirs -> ours, where they differ.
        allowed: by our name, what would be right in its words, where these differ.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    allowed: Mapping[str, str] = field(default_factory=dict)

    def ours(self, given: Mapping[str, object]) -> dict[str, object]:
        """What was given in its words, in ours; only what we have a name for."""
        found = {our: given[their] for our, their in self.names.items() if given.get(their) is not None}
        if found.get("mask_image") == "":  # clients that show a field for it send that empty
            del found["mask_image"]
        for name, values in self.values.items():
            value = found.get(name)
            if isinstance(value, str):
                found[name] = values.get(value, value)
        return found

    def theirs(self, problem: Problem) -> Problem:
        """What is wrong with a parameter of ours, in its words."""
        name = problem.parameter
        allowed = problem.allowed_text or self.allowed.get(name, problem.allowed)
        return replace(problem, parameter=self.names.get(name, name), allowed_text=allowed)

    def renamed(self, sentence: str) -> str:
        """A sentence that may begin with a parameter's name."""
        first, space, rest = sentence.partition(" ")
        return f"{self.names.get(first, first)}{space}{rest}"
