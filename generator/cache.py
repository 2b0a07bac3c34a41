"""A decoder that goes on from what it has read, under either of the names that transformers gives its cache."""

from inspect import signature
from typing import Any


def go_on(decoder: Any, cache: Any, **inputs: Any) -> tuple[Any, Any]:
    """The states of these inputs read behind what is in the cache (None: behind nothing), and the cache with them."""
    # `past_key_values` became `cache`, and goes with transformers 5.40
    name = "cache" if "cache" in signature(decoder.forward).parameters else "past_key_values"
    out = decoder(use_cache=True, **{name: cache}, **inputs)
    return out.last_hidden_state, getattr(out, name)
