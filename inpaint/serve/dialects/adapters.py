"""What clients call things: a category, an adapter or the base -> adapters to use and the prompt as trained.

`<lora:NAME:WEIGHT>` in a prompt calls an adapter in every dialect. A token alone does not: that of an imported LoRA may
be a word that others' prompts say, too.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from inpaint.errors import InpaintError
from inpaint.models.prompt_text import split_lora_tags
from inpaint.serve.http.errors import Problem, bad, shown
from inpaint.serve.http.schema import Bounds, Fields, Within, read_fields
from inpaint.serve.service import AdapterUse, ServedAdapter


@dataclass(frozen=True, kw_only=True)
class ChosenAdapter:
    """One adapter that a request names."""

    adapter: ServedAdapter
    category: str | None
    """Whose token goes into the prompt; None where the adapter has several and none was named."""
    weight: float = 1.0


def categories(catalogue: Mapping[str, ServedAdapter]) -> dict[str, list[str]]:
    """Category -> adapters that know it."""
    found: dict[str, list[str]] = {}
    for name, entry in sorted(catalogue.items()):
        for category in entry.card.tokens:
            found.setdefault(category, []).append(name)
    return found


def choose(
    name: str, catalogue: Mapping[str, ServedAdapter], field: str, *, weight: float = 1.0, also: str = ""
) -> ChosenAdapter:
    """The adapter of a category's or an adapter's name. Args: also: the base's name, where the field may name it.

    Raises Problem: 404 with the nearest names, or 400 where several adapters know the category.
    """
    if name in catalogue:
        tokens = catalogue[name].card.tokens
        only = next(iter(tokens)) if len(tokens) == 1 else None
        return ChosenAdapter(adapter=catalogue[name], category=name if name in tokens else only, weight=weight)
    adapters = categories(catalogue).get(name, [])
    if len(adapters) == 1:
        return ChosenAdapter(adapter=catalogue[adapters[0]], category=name, weight=weight)
    if adapters:
        raise bad(field, f"{shown(name)} is known to the adapters {', '.join(adapters)}: name one of them", "ambiguous")
    raise unknown(name, [*catalogue, *categories(catalogue), *([also] if also else [])], field)


class LoraTag(Fields):
    """What `<lora:NAME:WEIGHT>` says, told as the prompt's fault."""

    prompt: Annotated[float, Within("-max_weight", "max_weight")] = 1.0


def _called(prompt: str, catalogue: Mapping[str, ServedAdapter], limits: Bounds) -> tuple[str, list[ChosenAdapter]]:
    """A prompt without its tags `<lora:NAME:WEIGHT>`, and the adapters that they call. Raises Problem, as `choose`."""
    try:
        prompt, tags = split_lora_tags(prompt)
    except InpaintError as error:
        raise bad("prompt", str(error), "broken_tag") from error
    weights = [read_fields(LoraTag, {"prompt": weight}, limits).prompt for _, weight in tags]
    names = zip(tags, weights, strict=True)
    return prompt, [choose(name, catalogue, "prompt", weight=weight) for (name, _), weight in names]


def unknown(name: str, known: Sequence[str], field: str) -> Problem:
    """A 404 with the nearest of the known names."""
    folded = {candidate.casefold(): candidate for candidate in sorted(known)}
    near = [folded[match] for match in difflib.get_close_matches(name[:64].casefold(), folded, n=3, cutoff=0.5)]
    hint = f"nearest: {', '.join(near)}" if near else "none is near"
    message = f"{shown(name)} is not served; {hint}; GET /catalogue lists all {len(folded)}"
    return bad(field, message, "model_not_found", 404)


def adapted(
    prompt: str, named: Sequence[ChosenAdapter], field: str, catalogue: Mapping[str, ServedAdapter], limits: Bounds
) -> tuple[str, tuple[AdapterUse, ...]]:
    """The prompt as the adapters' cards write it, the first adapter's token first; and the adapters to use: those that
    `field` named, and those that tags in the prompt call.

    A prompt that already holds one of an adapter's tokens, as a word, is left as it is for that adapter.
    Raises Problem: a tag that calls none; one named twice, or more than `max_adapters`; or one has several tokens, and
    neither a category nor the prompt says which.
    """
    prompt, tagged = _called(prompt, catalogue, limits)
    chosen = [*named, *tagged]
    names, most = [one.adapter.name for one in chosen], limits["max_adapters"]
    if len(names) > most:
        raise bad(field, f"{len(names)} adapters, the limit is {most}")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise bad(field, f"adapter {twice} is named twice: give it once, with the weight you mean", "given_twice")
    for one in reversed(chosen):
        card = one.adapter.card
        if card.called_in(prompt):
            continue
        if card.tokens and one.category is None:
            tokens = ", ".join(sorted(card.tokens.values()))
            message = f"adapter {one.adapter.name} has the tokens {tokens}: write one of them into the prompt"
            raise bad("prompt", message)
        prompt = card.prompt(prompt, one.category)
    return prompt, tuple(
        AdapterUse(name=one.adapter.name, digest=one.adapter.digest, weight=one.weight) for one in chosen
    )
