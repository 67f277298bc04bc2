"""The query strings of the classification routes."""

from __future__ import annotations

from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.query import QueryLimits, QueryParser, parameters
from app.errors import InvalidParameter
from app.serving.results import ClassifyOptions

LIMITS = QueryLimits(max_timeout_ms=60_000, max_clips=8)
IMAGE, VIDEO = QueryParser("image", LIMITS), QueryParser("video", LIMITS)


def test_nothing_asked_means_the_defaults() -> None:
    assert IMAGE.parse(b"") == IMAGE.parse(b"&&") == ClassifyOptions()


def test_every_parameter_is_read() -> None:
    options = VIDEO.parse(b"model=hiera_base_16x224&top_k=3&timeout_ms=500&clips=5&crops=3&features=true")
    assert options == ClassifyOptions("hiera_base_16x224", 3, 500, 5, 3, features=True)


def test_names_and_values_may_be_percent_encoded() -> None:
    assert IMAGE.parse(b"top%5Fk=%31%30&model=a%2Eb") == ClassifyOptions(model="a.b", top_k=10)


@pytest.mark.parametrize(
    ("query", "hint"),
    [
        (b"topk=1", "did you mean top_k?"),
        (b"Top-K=1", "did you mean top_k?"),
        (b"timeout=1", "did you mean timeout_ms?"),
        (b"modle=x", "did you mean model?"),
        (b"zzz=1", "known are model, top_k, timeout_ms"),
        (b"clips=1", "for videos"),
    ],
)
def test_what_is_not_known_is_refused_with_a_hint(query: bytes, hint: str) -> None:
    with pytest.raises(InvalidParameter, match=hint.replace("?", r"\?")):
        IMAGE.parse(query)


@pytest.mark.parametrize("query", [b"top_k", b"top_k=+1", b"top_k=1.0", b"top_k=1e3", b"top_k= 1", b"top_k=9999999999"])
def test_numbers_are_plain_digits_in_range(query: bytes) -> None:
    with pytest.raises(InvalidParameter, match="whole number from 1 to 1000"):
        IMAGE.parse(query)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        (b"top_k=1&top_k=1", "given twice"),
        (b"top_k=1001", "from 1 to 1000"),
        (b"timeout_ms=60001", "from 1 to 60000"),
        (b"model=a/b", "not a model's name"),
        (b"model=a+b", "not a model's name"),
        (b"model=", "not a model's name"),
        (b"model=%FF", "not UTF-8"),
        (b"%FF=1", "not UTF-8"),
    ],
)
def test_what_is_not_as_documented_is_refused(query: bytes, words: str) -> None:
    with pytest.raises(InvalidParameter, match=words):
        IMAGE.parse(query)


@pytest.mark.parametrize("name", [b"top_k", b"features", b"crops", b"x"])
def test_of_what_was_sent_a_refusal_repeats_little(name: bytes) -> None:
    with pytest.raises(InvalidParameter) as raised:
        VIDEO.parse(name * (500 if name == b"x" else 1) + b"=" + b"9" * 500)
    assert len(str(raised.value)) < 200


def test_crops_are_one_or_three() -> None:
    assert [VIDEO.parse(b"crops=%d" % crops).crops for crops in (1, 3)] == [1, 3]
    with pytest.raises(InvalidParameter, match="must be 1 or 3"):
        VIDEO.parse(b"crops=2")


@pytest.mark.parametrize("value", [b"", b"1", b"True", b"yes"])
def test_features_are_wanted_or_not(value: bytes) -> None:
    assert [IMAGE.parse(b"features=%s" % word).features for word in (b"true", b"false")] == [True, False]
    with pytest.raises(InvalidParameter, match="must be true or false"):
        IMAGE.parse(b"features=" + value)


@given(st.binary(max_size=60))
def test_any_bytes_are_either_read_or_refused(query: bytes) -> None:
    try:
        options = VIDEO.parse(query)
    except InvalidParameter:
        return
    assert 1 <= options.top_k <= 1000


@given(st.integers(1, 1000), st.integers(1, 60_000), st.integers(1, 8), st.sampled_from([1, 3]))
def test_whatever_the_document_allows_is_read(top_k: int, timeout_ms: int, clips: int, crops: int) -> None:
    query = urlencode({"top_k": top_k, "timeout_ms": timeout_ms, "clips": clips, "crops": crops}).encode()
    assert VIDEO.parse(query) == ClassifyOptions(None, top_k, timeout_ms, clips, crops)


def test_the_document_describes_the_same_parameters() -> None:
    described = {each["name"]: each["schema"] for each in parameters("video", LIMITS)}
    assert list(described) == ["model", "top_k", "timeout_ms", "features", "clips", "crops"]
    assert (described["clips"]["maximum"], described["timeout_ms"]["maximum"]) == (8, 60_000)
