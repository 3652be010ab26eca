"""Whether attention gets an explicit mask or the implicit causal path: two routes through attention."""

from collections.abc import Iterator
from contextlib import contextmanager

from replay.factors import Evidence, Setup, Unpinnable


@contextmanager
def pin(value: str, setup: Setup) -> Iterator[None]:
    """Stop transformers from dropping a causal mask, as it does in a launch without padding."""
    setup.mask_path = value
    if value == "implicit":
        yield
        return
    from transformers import masking_utils

    if not hasattr(masking_utils, "_ignore_causal_mask_sdpa"):
        raise Unpinnable("batch.mask_path=explicit: this transformers decides elsewhere when to drop the mask")
    original = masking_utils._ignore_causal_mask_sdpa
    masking_utils._ignore_causal_mask_sdpa = lambda *_args, **_kwargs: False
    try:
        yield
    finally:
        masking_utils._ignore_causal_mask_sdpa = original


def observe(evidence: Evidence) -> str | None:
    """Return the path from the mask argument of the attention operator; for eager attention, from its module."""
    calls = evidence.shapes("aten::scaled_dot_product_attention")
    if calls:
        first_only = evidence.launches[0].cache_length > 0  # later chunks of a prompt always come with a mask
        paths = {"explicit" if shapes[3] else "implicit" for shapes in (calls[:1] if first_only else calls)}
    else:
        paths = {launch.mask_path for launch in evidence.launches}
    return paths.pop() if len(paths) == 1 else None
