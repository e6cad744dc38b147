"""Damage to a file's bytes, as values that hypothesis can make smaller."""

from __future__ import annotations

from hypothesis import strategies as st

Damage = list[tuple[str, float, bytes]]

# What is done, where (a share of the file: half of the places lie in its first hundredth), and with which bytes.
_PLACES = st.one_of(st.floats(0, 1, exclude_max=True), st.floats(0, 0.01))
DAMAGE: st.SearchStrategy[Damage] = st.lists(
    st.tuples(
        st.sampled_from(["replace", "replace", "replace", "insert", "remove", "cut"]),
        _PLACES,
        st.binary(min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=4,
)


def damaged(content: bytes, damage: Damage) -> bytes:
    """Return content with all of the damage done to it, in order."""
    for kind, place, new in damage:
        at = int(place * len(content))
        end = {"replace": at + len(new), "insert": at, "remove": at + len(new), "cut": len(content)}[kind]
        content = content[:at] + (new if kind in ("replace", "insert") else b"") + content[end:]
    return content
