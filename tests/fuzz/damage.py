"""Damage to a file's bytes, as values that Hypothesis can shrink."""

from __future__ import annotations

from hypothesis import strategies as st

Damage = list[tuple[str, float, bytes]]

# (operation, position as a fraction of the file, bytes); half of the positions are in the first hundredth.
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
    """Apply all of the damage to the content, in order."""
    for kind, place, new in damage:
        at = int(place * len(content))
        end = {"replace": at + len(new), "insert": at, "remove": at + len(new), "cut": len(content)}[kind]
        content = content[:at] + (new if kind in ("replace", "insert") else b"") + content[end:]
    return content
