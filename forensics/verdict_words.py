"""What a filed verdict says beyond its claim, in words. What does not fit the document's form reads as nothing."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROW_COUNT = re.compile(r"gemm\.\w+\.rows(\.decode)?")


def findings(document: dict[str, Any]) -> Iterator[str]:
    """Yield what a verdict says beyond its claim, a sentence each."""
    refuted = [text(one) for one in items(document.get("refuted"))]
    products = [name for name in refuted if _ROW_COUNT.fullmatch(name)]
    shown = [name for name in refuted if name not in products]
    if products:
        shown.append(f"the row count M of GEMMs ({len(products)} of them, prompt and later passes)")
    if shown:
        yield f"differs, and does nothing: {', '.join(shown)}"
    shares = [
        f"{text(one.get('factor'))} {one['share']:.0%}"
        for one in map(mapping, items(document.get("effects")))
        if isinstance(one.get("share"), int | float)
    ]
    if shares:
        yield f"share of the effect on the two tokens' contrast: {', '.join(shares)}"
    for name, title in (("history", "history or step"), ("rounding", "rounding or bug")):
        part = mapping(document.get(name))
        if part:
            answer = text(part.get("carried_by") or part.get("answer")).replace("_", " ")
            yield f"{title}: {answer} ({text(part.get('detail'))})"
    yield from _neighbours(mapping(document.get("neighbours")))
    yield from _passes(mapping(document.get("passes")))
    yield from _operators(mapping(document.get("localised")))
    yield from _arbiter(mapping(document.get("arbiter")))
    repeats = mapping(document.get("repeats"))
    rate = repeats.get("excludes_rate_above")
    if isinstance(rate, int | float):
        runs = text(repeats.get("runs"))
        yield f"{runs} repeats gave the same bits: a rate of change above {rate:.0%} is excluded at 95 %"


def _neighbours(part: dict[str, Any]) -> Iterator[str]:
    """Yield who carries the difference, and whether it matters what they say."""
    if not part:
        return
    few, arm = [text(one) for one in items(part.get("fewest"))], text(part.get("arm"))
    named = ", ".join(few[:3]) + (f" and {len(few) - 3} more" if len(few) > 3 else "")
    what = "bits" if part.get("carry") == "bits" else "token, though not for its bits"
    least = "" if part.get("minimal") is True else " (fewer might do)"
    removed = text(part.get("removed"))
    without = {
        "": "what comes out without is not known",
        "neither": "without, neither arm's bits come out",
        arm: f"without, the {arm}'s bits come out all the same: others carry the difference as well",
    }.get(removed, f"without, the {removed}'s bits come out")
    count = f"{len(few)} of {text(part.get('of'))} other requests"
    yield f"{count} are enough for the {arm}'s {what}: {named}{least}; {without}; {text(part.get('detail'))}"
    matters = part.get("contents_matter")
    if isinstance(matters, bool):
        yield (
            f"what the others say {'changes the bits' if matters else 'changes no bit'}: random ids of equal length, "
            "sharing and output length were tried"
        )
    elif part.get("contents") == "random":
        yield "the others' ids were withheld: random ids of equal length, sharing and output length stood in for them"


def _passes(part: dict[str, Any]) -> Iterator[str]:
    """Yield in which passes the difference arises, and at which size of launch the first of them changes."""
    arm, of = text(part.get("arm")), text(part.get("of"))
    for one in map(mapping, items(part.get("stretches"))):
        steps = [text(step) for step in items(one.get("engine_steps"))]
        where = f" (engine steps {' to '.join(dict.fromkeys(steps))})" if steps else ""
        what = "logits of the flip, bit for bit" if one.get("carry") == "bits" else "token, though not for its bits"
        span = " to ".join(dict.fromkeys((text(one.get("first")), text(one.get("last")))))
        yield f"of {of} passes, {span}{where} as in the {arm} are enough for its {what}"
    if detail := text(part.get("detail")):
        yield detail
    border = mapping(part.get("border"))
    if not border:
        return
    rows, tokens = border.get("fewest_rows"), border.get("fewest_tokens")
    sizes = [f"{text(rows)} more {'row' if rows == 1 else 'rows'} of one token"] if rows is not None else []
    sizes += [f"one more row of {text(tokens)} {'token' if tokens == 1 else 'tokens'}"] if tokens is not None else []
    fewest = f"there {', or '.join(sizes)}, gives the same bits as the company, and one less does not" if sizes else ""
    none = "" if sizes or border.get("detail") else "no stand-ins up to its size give the same bits there"
    told = "; ".join(part for part in (fewest, none, text(border.get("detail"))) if part)
    launch = f"{text(border.get('rows'))} rows and {text(border.get('launch_tokens'))} tokens"
    yield f"pass {text(border.get('at'))} ran in a launch of {launch}; {told}"


def _operators(part: dict[str, Any]) -> Iterator[str]:
    """Yield the first operator that differs, those that do so by themselves, and what each of them restores."""
    if not part:
        return
    first, detail = text(part.get("first")), text(part.get("detail"))
    if not first:
        yield f"which operator: open ({detail})"
        return
    origins, relays = ([mapping(one) for one in items(part.get(name))] for name in ("origins", "relays"))
    counts = f"{text(part.get('equal'))} of {text(part.get('operators'))} operators give equal bits in pass"
    own = ", ".join(dict.fromkeys(_named(one) for one in origins)) or "none that could be tried"
    yield (
        f"which operator: {counts} {text(part.get('at'))}; the first that does not is {first}; on the reference's own "
        f"rows as input these still give other bits: {own}"
    )
    measured = [(one["share"], one) for one in origins if isinstance(one.get("share"), int | float)]
    if measured:
        told = ", ".join(f"{_named(one)} {share:.0%} ({_token(one)})" for share, one in measured)
        null = [one["share"] for one in relays if isinstance(one.get("share"), int | float)]
        beside = f"; {len(null)} that only pass it on: {min(null):.0%} to {max(null):.0%}" if null else ""
        yield f"the reference's output in its place restores of the two tokens' contrast: {told}{beside}"
        most, one = max(measured, key=lambda pair: pair[0])
        if first not in _sites(one):
            yield f"the first that differs ({first}) is not what counts most: {_named(one)} restores {most:.0%}"
    elif origins:
        tokens = ", ".join(f"{_named(one)} gives {_token(one)}" for one in origins)
        yield f"the last hidden state's contrast is the same in both arms; with the reference's output, {tokens}"
    if part.get("null_holds") is False:
        yield "putting in outputs of equal bits changed bits: nothing of this can be relied on"
    if detail:
        yield detail


def _named(one: dict[str, Any]) -> str:
    layers = [text(layer) for layer in items(one.get("layers"))]
    shown = ", ".join(layers) if len(layers) <= 4 else f"{layers[0]} to {layers[-1]} ({len(layers)} of them)"
    where = f" of layer{'s' if len(layers) > 1 else ''} {shown}" if layers else ""
    return f"{text(one.get('operator'))}{where}"


def _sites(one: dict[str, Any]) -> list[str]:
    role, layers = text(one.get("operator")), items(one.get("layers"))
    return [f"layers.{text(layer)}.{role}" for layer in layers] or [role]


def _token(one: dict[str, Any]) -> str:
    whose = text(one.get("token"))
    return {"": "no token at the flip", "neither": "another token"}.get(whose, f"the {whose}'s token")


def _arbiter(part: dict[str, Any]) -> Iterator[str]:
    """Yield who is right by float64, against what noise, and from which layer on."""
    numbers = [part.get(name) for name in ("margin", "floor", "float32_floor")]
    margin, floor, fine = (one if isinstance(one, int | float) else None for one in numbers)
    if margin is None or floor is None or fine is None:
        if part:
            yield f"who is right: open ({text(part.get('detail'))})"
        return
    dtype, answer = text(part.get("dtype")), text(part.get("answer"))
    ahead = f"float64 has the {'incident' if margin > 0 else 'reference'}'s token {abs(margin):.3g} logits ahead"
    beside = f"rounding in {dtype} can move that by {floor:.3g}, in fp32 by {fine:.3g}"
    told = {
        "incident_wrong": "the incident is wrong",
        "reference_wrong": "the reference is wrong",
        "undecidable": f"undecidable at this precision, {dtype} can give either",
    }.get(answer, answer)
    yield f"who is right: {told}; {ahead}, {beside}"
    layers = [one.get("float64") for one in map(mapping, items(part.get("layers")))]
    lens = [one for one in layers if isinstance(one, int | float)]
    since = next((at for at in range(len(lens)) if all(one * margin > 0 for one in lens[at:])), None)
    if since is not None:
        yield f"it is ahead from layer {since} on, each layer seen through the final norm and the head (logit lens)"
    if detail := text(part.get("detail")):
        yield detail


def text(value: Any) -> str:
    """Return a value as text, "" for none."""
    return "" if value is None else str(value)


def mapping(value: Any) -> dict[str, Any]:
    """Return a value that is an object, {} in place of anything else."""
    return value if isinstance(value, dict) else {}


def items(value: Any) -> list[Any]:
    """Return a value that is an array, [] in place of anything else."""
    return value if isinstance(value, list) else []
