"""What property-based tests share: damaged bytes, nested values, and the outcomes that a reader may have.

The examples are the same on every machine and in every run, and no clock judges them.
"""

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

import main
from model.errors import UserError

LONGEST_LINE = 1100                 # letters of an error
_NUMBERS = [0, 1, 2, 4, 8, 127, 128, 255, 256, 0x7fff, 0x8000, 0xffff, 1 << 20, 1 << 28, 0x7fffffff, 0x80000000,
            0xfffffffe, 0xffffffff, (1 << 63) - 1, (1 << 64) - 1]     # that sizes and offsets turn at


SHARE = float(os.environ.get("EXAMPLES", 0.55))          # EXAMPLES=10 looks for long


def examples(count: int) -> settings:
    """Settings of a test with so many examples; SHARE of them, so that all together are some more than 2,400."""
    return settings(max_examples=round(SHARE * count), derandomize=True, deadline=None, database=None,
                    suppress_health_check=list(HealthCheck))


def damaged(whole: bytes):
    """A file's bytes after one to four accidents: bits flipped, bytes lost, inserted, replaced by a number or by other
    bytes of the file."""
    place = st.one_of(st.integers(0, min(len(whole), 400) - 1), st.integers(0, len(whole) - 1))
    width = st.sampled_from([1, 2, 4, 8])
    accident = st.one_of(
        st.tuples(st.just("flip"), place, st.integers(0, 7)), st.tuples(st.just("lose"), place, width),
        st.tuples(st.just("cut"), place), st.tuples(st.just("insert"), place, st.binary(min_size=1, max_size=8)),
        st.tuples(st.just("number"), place, width, st.sampled_from(_NUMBERS), st.sampled_from(["little", "big"])),
        st.tuples(st.just("swap"), place, place, width))
    return st.lists(accident, min_size=1, max_size=4).map(lambda accidents: _after(whole, accidents))


def _after(whole: bytes, accidents: list[tuple]) -> bytes:
    content = bytearray(whole)
    for kind, place, *rest in accidents:
        if kind == "flip" and place < len(content):
            content[place] ^= 1 << rest[0]
        elif kind == "lose":
            del content[place:place + rest[0]]
        elif kind == "cut":
            del content[place:]
        elif kind == "insert":
            content[place:place] = rest[0]
        elif kind == "number":
            size, number, order = rest
            content[place:place + size] = (number % (1 << 8 * size)).to_bytes(size, order)
        elif kind == "swap":
            other, size = rest
            one, two = content[place:place + size], content[other:other + size]
            content[place:place + size], content[other:other + size] = two, one
    return bytes(content)


def nested(names: list[str]):
    """Nested plain values as YAML and JSON hold them; many of the names are those that a reader knows."""
    scalar = st.one_of(st.none(), st.booleans(), st.integers(-3, 400), st.integers(), st.floats(), st.text(max_size=8),
                       st.sampled_from(["a.b", "../x", "1e3", "null", "-", "\x1b[31m", "released", "s2amsnet"]))
    name = st.one_of(st.sampled_from(names), st.text(max_size=6))
    return st.recursive(scalar, lambda inner: st.one_of(st.lists(inner, max_size=3),
                                                        st.dictionaries(name, inner, max_size=4)), max_leaves=8)


def changed(whole, names: list[str]):
    """Plain values with one to three of them, at any depth, replaced, dropped or given another name."""
    places = sorted(_places(whole), key=repr)
    change = st.tuples(st.sampled_from(places), st.sampled_from(["replace", "drop", "rename"]), nested(names),
                       st.sampled_from(names))
    return st.lists(change, min_size=1, max_size=3).map(lambda changes: _changed(whole, changes))


def _places(value, place=()):
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield (*place, key)
        yield from _places(one, (*place, key))


def _changed(whole, changes):
    """The changes one after the other, each where its place still is."""
    for (*above, key), kind, value, name in changes:
        whole = _set(whole, above, key, kind, value, name)
    return whole


def _set(value, above, key, kind, new, name):
    if not isinstance(value, (dict, list)) or (key if not above else above[0]) not in (
            value if isinstance(value, dict) else range(len(value))):
        return value
    items = dict(value.items() if isinstance(value, dict) else enumerate(value))
    if above:
        items[above[0]] = _set(items[above[0]], above[1:], key, kind, new, name)
    elif kind == "replace":
        items[key] = new
    else:
        old = items.pop(key)
        if kind == "rename" and isinstance(value, dict):
            items[name] = old
    return items if isinstance(value, dict) else list(items.values())


def right_or_refused(read):
    """What a reader gives; None where it refuses with one of the program's own errors, in one line."""
    try:
        return read()
    except UserError as error:
        told = main.in_one_line(error)
        assert told.isprintable() and len(told) < LONGEST_LINE, told
        return None
