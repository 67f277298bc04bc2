"""What an Open Inference Protocol request is told where it says what it may not."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inference_calls import ROW_BYTES, binary_rows, files, model_of, parse, rows, text_of, wanted

from app.api.tensors import MAX_JSON_BYTES, MAX_NAMED, MAX_WRITTEN
from app.errors import HieraError, InvalidParameter, LimitExceeded, MalformedRequest

MOST_SAID = 2000  # letters of an error's message, whatever was sent
LONGEST = "9" * 4300  # the longest number that the JSON parser takes, and more than Python writes


def refusal(text: bytes) -> HieraError:
    """Why a request is refused."""
    with pytest.raises((MalformedRequest, InvalidParameter)) as refused:
        parse(text)
    assert len(str(refused.value)) <= MOST_SAID
    return refused.value


def test_bytes_can_follow_only_where_the_header_says_how_long_the_json_is() -> None:
    parse(text_of(rows()), binary_follows=False)
    with pytest.raises(MalformedRequest, match="without the header Inference-Header-Content-Length"):
        parse(text_of(binary_rows()), binary_follows=False)


@pytest.mark.parametrize(
    "tensor",
    [
        rows(name="row"),
        rows(name="files"),
        rows(datatype="INT8"),
        rows(datatype="BYTES"),
        rows(datatype="uint8"),
        files(1, 5, name="rows"),
        files(1, 5, datatype="UINT8"),
        rows(name="x" * 100_000, datatype="y" * 100_000),
    ],
)
def test_an_input_of_another_name_or_type_is_told_what_the_model_takes(tensor: dict[str, Any]) -> None:
    error = refusal(text_of(tensor))
    assert isinstance(error, InvalidParameter)
    assert "m takes 'rows' of UINT8, [n, 2, 2, 3], or 'files' of BYTES, [n]" in str(error)


@pytest.mark.parametrize(
    "shape", [[], [1], [0, 2, 2, 3], [2, 2, 3], [1, 2, 2], [1, 2, 2, 4], [1, 3, 2, 2], [1, 1, 2, 2, 3], [12]]
)
def test_rows_of_another_shape_are_refused(shape: list[int]) -> None:
    error = refusal(text_of(rows(shape=shape)))
    assert isinstance(error, InvalidParameter)
    assert f"the shape of rows is {shape}; m takes [n, 2, 2, 3]" in str(error)


def test_a_video_model_takes_no_rows_of_an_image() -> None:
    with pytest.raises(InvalidParameter, match=r"\[1, 2, 2, 3\]; m takes \[n, 4, 2, 2, 3\]"):
        wanted(rows(), model_of("video"))


@pytest.mark.parametrize("shape", [[], [0], [0, 1], [1, 2], [2, 2], [1, 1, 1], [1, 0]])
def test_files_of_another_shape_are_refused(shape: list[int]) -> None:
    error = refusal(text_of(files(1, 5, shape=shape)))
    assert isinstance(error, InvalidParameter)
    assert f"the shape of files is {shape}; it must be [n] or [n, 1]" in str(error)


@pytest.mark.parametrize(
    "tensor",
    [
        rows(parameters={"binary_data_size": ROW_BYTES}),
        rows(parameters={"binary_data_size": 0}),
        binary_rows(parameters={}),
        binary_rows(parameters={}, data=None),
        files(1, 5, parameters={}),
        files(1, 5, data=["eA=="]),
    ],
    ids=["both", "both, none of it", "neither", "neither, null", "files, neither", "files, both"],
)
def test_an_input_has_either_numbers_in_json_or_bytes_behind_it(tensor: dict[str, Any]) -> None:
    error = refusal(text_of(tensor))
    assert isinstance(error, MalformedRequest)
    assert "either data, or binary_data_size" in str(error)


def test_files_in_json_are_led_elsewhere() -> None:
    error = refusal(text_of(files(1, 0, parameters={}, data=["eA=="])))
    assert isinstance(error, InvalidParameter)
    assert "files come as binary data" in str(error)
    assert "/classify/image" in str(error)


@pytest.mark.parametrize("nbytes", [0, 23, 25, 12, 48])
def test_a_size_that_is_not_that_of_the_shape_is_refused(nbytes: int) -> None:
    error = refusal(text_of(binary_rows(2, nbytes)))
    assert isinstance(error, MalformedRequest)
    assert f"binary_data_size is {nbytes}, but the shape has 24 bytes" in str(error)


@pytest.mark.parametrize(
    "data",
    [
        [],
        [0] * 11,
        [0] * 13,
        [0] * 11 + [256],
        [0] * 11 + [-1],
        [0] * 11 + [10**30],
        [0] * 11 + [2**63],
        [0.0] * 12,
        [0] * 11 + [0.5],
        [0] * 11 + [1.0],
        [True] * 12,
        [0] * 11 + [True],
        ["0"] * 12,
        [0] * 11 + ["0"],
        [0] * 11 + [None],
        [None] * 12,
        [{}] * 12,
        [[0] * 11, [0]],
        [[0] * 11, 0],
        [[0] * 6, [0] * 5],
        [0, [0] * 11],
        [[[0] * 12]] * 2,
        [[]] * 12,
        json.loads("[" * 150 + "0" + "]" * 150),
    ],
    ids=lambda data: json.dumps(data)[:20],
)
def test_rows_in_json_are_whole_numbers_of_a_byte_as_many_as_the_shape_has(data: list[Any]) -> None:
    error = refusal(text_of(rows(data)))
    assert isinstance(error, MalformedRequest)
    assert "12 whole numbers from 0 to 255" in str(error)


def test_one_long_text_among_the_numbers_does_not_cost_its_length_for_each_of_them() -> None:
    # As an array of texts this would have 151 times 500,000 letters, of four bytes each.
    error = refusal(text_of(rows(["a" * 500_000, *["b"] * 150])))
    assert "12 whole numbers from 0 to 255" in str(error)


@pytest.mark.parametrize(
    "text",
    [
        '{"inputs":[{"name":"rows","shape":[%s,2,2,3],"datatype":"UINT8","data":[1]}]}',
        '{"inputs":[{"name":"rows","shape":[%s,2,2,3],"datatype":"UINT8","parameters":{"binary_data_size":12}}]}',
        '{"inputs":[{"name":"rows","shape":[1,%s,2,3],"datatype":"UINT8","data":[1]}]}',
        '{"inputs":[{"name":"rows","shape":[1,2,2,3],"datatype":"UINT8","data":[%s]}]}',
        '{"inputs":[{"name":"rows","shape":[1,2,2,3],"datatype":"UINT8","parameters":{"binary_data_size":%s}}]}',
        '{"inputs":[{"name":"files","shape":[1,%s],"datatype":"BYTES","parameters":{"binary_data_size":5}}]}',
    ],
)
@pytest.mark.parametrize("number", [LONGEST, "1" + "0" * 18, LONGEST + "9"], ids=["longest", "2**60", "too long"])
def test_an_enormous_number_is_refused_in_few_words_and_nothing_is_allocated_for_it(text: str, number: str) -> None:
    refusal((text % number).encode())


def test_a_time_limit_is_in_microseconds() -> None:
    assert wanted(rows()).timeout_s is None
    assert wanted(rows(), parameters={"timeout": 2_500_000}).timeout_s == 2.5
    assert wanted(rows(), parameters={"timeout": 1}).timeout_s == 1e-6
    for timeout in (0, -1, 1.5, "1000", True):
        error = refusal(text_of(rows(), parameters={"timeout": timeout}))
        assert "parameters.timeout" in str(error)


@pytest.mark.parametrize("digits", [20, 400, 4300])
def test_a_time_limit_of_ages_is_one_or_is_refused(digits: int) -> None:
    text = text_of(rows(), parameters={"timeout": 7}).replace(b"7}", b"7" * digits + b"}")
    with contextlib.suppress(MalformedRequest):
        assert (parse(text).timeout_s or 0) > 10**10


@pytest.mark.parametrize(
    ("call", "where"),
    [
        ({"input": []}, "inputs: Field required"),
        ({"inputs": []}, "inputs: List should have at least 1 item"),
        ({"inputs": [rows(), rows()]}, "inputs: List should have at most 1 item"),
        ({"inputs": rows()}, "inputs"),
        ({"inputs": [rows()], "more": 1}, "more: Extra"),
        ({"inputs": [rows()], "parameters": {"sequence_id": 1}}, "parameters.sequence_id: Extra"),
        ({"inputs": [rows(parameters={"shared_memory_region": "x"})]}, "inputs.0.parameters.shared_memory_region"),
        ({"inputs": [rows(parameters={"binary_data_size": -1})]}, "inputs.0.parameters.binary_data_size"),
        ({"inputs": [rows(shape=[1, -2, 2, 3])]}, "inputs.0.shape.1"),
        ({"inputs": [rows(shape=[1.0, 2, 2, 3])]}, "inputs.0.shape.0"),
        ({"inputs": [rows(shape="1")]}, "inputs.0.shape"),
        ({"inputs": [{"name": "rows"}]}, "inputs.0.shape: Field required"),
        ({"inputs": [rows(data="AAAA")]}, "inputs.0.data"),
        ({"inputs": [rows()], "id": 7}, "id: "),
        ({"inputs": [rows()], "id": "x" * 257}, "id: String should have at most 256"),
        ({"inputs": [rows()], "outputs": [{"name": "probabilities"}] * 3}, "outputs: List should have at most 2"),
        ({"inputs": [rows()], "outputs": [{"name": "probabilities", "more": 1}]}, "outputs.0.more"),
        ({"inputs": [rows()], "outputs": [{"name": "probabilities", "parameters": {"classification": 0}}]}, "outputs"),
        ({"inputs": [rows()], "parameters": {"binary_data_output": 1}}, "parameters.binary_data_output"),
        ([rows()], "the JSON"),
        (None, "the JSON"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_json_of_another_form_is_told_where_it_is_wrong(call: Any, where: str) -> None:
    error = refusal(json.dumps(call).encode())
    assert isinstance(error, MalformedRequest)
    assert "Open Inference Protocol" in str(error)
    assert where in str(error)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"\xff", b'{"inputs": NaN}', b'{"\\ud800": 1}', text_of(rows()) + b"x", b"\xef\xbb\xbf{}",
     b'{"inputs":' + b"[" * 500_000, b'{"a":' * 100_000],
    ids=["nothing", "cut off", "no UTF-8", "NaN", "half a letter", "goes on", "a mark", "deep", "deep objects"],
)  # fmt: skip
def test_what_is_no_json_is_refused(text: bytes) -> None:
    error = refusal(text)
    assert isinstance(error, MalformedRequest)
    assert "Open Inference Protocol" in str(error)


@pytest.mark.parametrize(
    "text",
    [
        b'{"inputs":[{"name":"rows","datatype":"UINT8","shape":[%s]}]}' % b",".join([b"-1"] * (MAX_JSON_BYTES // 4)),
        b"{%s}" % b",".join(b'"a%d":1' % number for number in range(MAX_JSON_BYTES // 16)),
        b'{"%s":1}' % (b"a" * (MAX_JSON_BYTES - 100)),
    ],
    ids=["values", "names", "one name"],
)
def test_of_very_many_faults_or_very_long_ones_the_message_tells_a_few(text: bytes) -> None:
    refusal(text)


def test_an_output_that_the_model_has_not_is_refused() -> None:
    error = refusal(text_of(rows(), outputs=[{"name": "logits" * 10_000}]))
    assert isinstance(error, InvalidParameter)
    assert "m on fake gives no output 'logits" in str(error)
    assert str(error).endswith("only probabilities, features")
    with pytest.raises(InvalidParameter, match="gives no output 'features', only probabilities"):
        wanted(rows(), model_of(features=False), outputs=[{"name": "features"}])


def test_only_probabilities_have_classes_that_can_be_named() -> None:
    top = {"parameters": {"classification": 2}}
    wanted(rows(), outputs=[{"name": "probabilities", **top}])
    error = refusal(text_of(rows(), outputs=[{"name": "features", **top}]))
    assert isinstance(error, InvalidParameter)
    assert "classification goes with probabilities alone" in str(error)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=10,
)
_FIELDS = ["id", "parameters", "inputs", "outputs", "name", "shape", "datatype", "data", "binary_data_size", "timeout"]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(_FIELDS), _JSON, st.sampled_from([rows(), binary_rows(), files(1, 5)]))
def test_whatever_stands_in_a_field_is_read_or_refused(field: str, value: Any, tensor: dict[str, Any]) -> None:
    call: dict[str, Any] = {"inputs": [dict(tensor)]}
    parameters = {"binary_data_size": call["inputs"][0], "timeout": call}
    if field in parameters:
        parameters[field]["parameters"] = {field: value}
    else:
        (call if field in ("id", "parameters", "inputs", "outputs") else call["inputs"][0])[field] = value
    try:
        request = parse(json.dumps(call).encode())
    except (MalformedRequest, InvalidParameter):
        return
    assert request.rows is None or request.rows.nbytes == request.count * ROW_BYTES


def test_an_answer_that_takes_long_to_write_comes_as_bytes_alone() -> None:
    most = MAX_WRITTEN // 5  # rows of 3 probabilities and 2 features
    parse(text_of(binary_rows(most)))
    parse(text_of(binary_rows(most + 1), parameters={"binary_data_output": True}))
    with pytest.raises(LimitExceeded, match=r"200,005 numbers in its JSON .* Ask for binary_data"):
        parse(text_of(binary_rows(most + 1)))


def test_so_many_classes_are_named_and_no_more_whether_in_json_or_as_bytes() -> None:
    most = MAX_NAMED // 3  # rows; more classes than there are count as all
    for binary in (True, False):
        named = {"name": "probabilities", "parameters": {"classification": 7, "binary_data": binary}}
        parse(text_of(binary_rows(most), outputs=[named]))
        with pytest.raises(LimitExceeded, match="20,001 named classes"):
            parse(text_of(binary_rows(most + 1), outputs=[named]))


def test_a_hundred_thousand_unknown_names_are_told_nothing_one_by_one() -> None:
    text = json.dumps({"inputs": [rows()], **{f"a{number}": 1 for number in range(100_000)}}).encode()
    assert str(refusal(text)).endswith("more names and texts than the Open Inference Protocol knows")
