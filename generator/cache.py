"""A decoder that goes on from what it has read, under either of the names that transformers gives its cache."""

from functools import cache as once
from inspect import signature
from typing import Any


def go_on(decoder: Any, cache: Any, **inputs: Any) -> tuple[Any, Any]:
    """The states of these inputs read behind what is in the cache (None: behind nothing), and the cache with them."""
    name = _name(decoder.__class__)
    out = decoder(use_cache=True, **{name: cache}, **inputs)
    return out.last_hidden_state, getattr(out, name)


@once
def _name(kind: Any) -> str:
    """`past_key_values` became `cache`, and goes with transformers 5.40."""
    return "cache" if "cache" in signature(kind.forward).parameters else "past_key_values"
