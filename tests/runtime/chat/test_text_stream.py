"""Text from token bytes: never half a character, never a part of a stop string."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tritgguf.runtime.chat.text_stream import TextStream


@given(text=st.text(max_size=40), cuts=st.lists(st.integers(0, 120), max_size=20))
def test_any_cutting_of_valid_text_gives_the_text_in_whole_characters(text, cuts):
    data = text.encode()
    borders = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    stream = TextStream()
    pieces = [stream.feed(data[start:end]) for start, end in itertools.pairwise(borders)]
    assert "".join(pieces) + stream.end() == text


@given(
    text=st.text("ab ", max_size=30),
    stops=st.lists(st.text("ab ", min_size=1, max_size=4), max_size=3),
    size=st.integers(1, 4),
)
def test_stop_strings_end_the_text_where_a_search_of_the_whole_text_finds_the_first(text, stops, size):
    stream, shown = TextStream(stops), ""
    for start in range(0, len(text), size):
        shown += stream.feed(text[start : start + size].encode())
        # The oracle: the first piece after which a stop string is complete decides.
        seen = text[: start + size]
        found = [seen.index(stop) for stop in stops if stop in seen]
        assert stream.stopped == bool(found)
        if found:
            assert shown == seen[: min(found)]
            break
    else:
        assert shown + stream.end() == text


def test_an_unfinished_character_at_the_end_is_dropped():
    stream = TextStream()
    assert stream.feed("a🙂".encode()[:-1]) == "a"
    assert stream.end() == ""


def test_bytes_that_are_no_utf8_become_replacement_characters():
    assert TextStream().feed(b"a\xffb") == "a\ufffdb"


@pytest.mark.parametrize(
    ("pieces", "text"), [([b" Hi", b" you"], "Hi you"), ([b"", b" ", b" a"], " a"), ([b"Hi"], "Hi")]
)
def test_one_space_at_the_start_can_be_left_out(pieces, text):
    stream = TextStream()
    stream.drop_first_space = True
    assert "".join(map(stream.feed, pieces)) == text
