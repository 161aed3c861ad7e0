"""What a graph takes from other files is read as onnx reads it, or refused."""

from __future__ import annotations

import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from compare2score.external_data import Span, external_spans, mentions_external_data


def outside(location: str, **stated: str) -> TensorProto:
    """A tensor of four float32 whose data lie elsewhere."""
    tensor = TensorProto(name="w", dims=[4], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **stated}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def graph_of(*tensors: TensorProto, nodes: tuple = ()) -> onnx.GraphProto:
    return helper.make_graph(list(nodes), "g", [], [], list(tensors))


def model_of(graph: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(graph)


def everywhere() -> onnx.ModelProto:
    """A model with external data in every place where ONNX allows a tensor."""
    sparse = onnx.SparseTensorProto(
        values=outside("sparse values"), indices=outside("sparse indices"), dims=[9]
    )
    inner = graph_of(
        outside("branch"), nodes=(helper.make_node("Constant", [], ["c"], value=outside("nested value")),)
    )
    nodes = (
        helper.make_node("Constant", [], ["a"], value=outside("value")),
        helper.make_node("If", ["x"], ["y"], then_branch=inner),
        helper.make_node("Odd", [], ["b"], tensors=[outside("list")], domain="ours"),
        helper.make_node("Odd", [], ["d"], graphs=[graph_of(outside("list of graphs"))], domain="ours"),
        helper.make_node("Constant", [], ["e"], sparse_value=sparse),
    )
    model = model_of(graph_of(outside("weight", offset="4096", length="16"), nodes=nodes))
    model.graph.sparse_initializer.append(sparse)
    function = model.functions.add(name="f", domain="ours")
    function.node.append(helper.make_node("Constant", [], ["a"], value=outside("function")))
    training = model.training_info.add()
    training.algorithm.CopyFrom(graph_of(outside("training")))
    training.initialization.CopyFrom(graph_of(outside("beginning")))
    return model


def test_external_data_are_found_wherever_a_tensor_may_be():
    spans = external_spans(everywhere().SerializeToString())
    assert Span("weight", 4096, 16) in spans
    assert {span.file for span in spans} == {
        "weight",
        "value",
        "branch",
        "nested value",
        "list",
        "list of graphs",
        "sparse values",
        "sparse indices",
        "function",
        "training",
        "beginning",
    }


def test_a_model_that_is_whole_in_itself_has_none():
    content = model_of(
        graph_of(helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0]))
    ).SerializeToString()
    assert not mentions_external_data(content)
    assert external_spans(content) == []


def field(number: int, content: bytes) -> bytes:
    """A protobuf field of bytes, shorter than 128."""
    return bytes([number << 3 | 2, len(content)]) + content


LOCATION, GOOD, EVIL = field(1, b"location"), field(2, b"good"), field(2, b"evil")


def with_entry(entry: bytes, tensor: bytes = b"") -> bytes:
    """A model whose one tensor has `entry` as its external data."""
    return field(7, field(5, field(13, entry) + tensor))


@pytest.mark.parametrize(
    "model",
    [
        # The last of two values counts, wherever protobuf finds it.
        with_entry(LOCATION + GOOD + EVIL),
        with_entry(EVIL + LOCATION + GOOD),
        with_entry(GOOD + LOCATION),
        with_entry(LOCATION),
        with_entry(LOCATION + GOOD + field(3, b"more")),
        # An unknown field that looks like the beginning of an entry.
        with_entry(field(3, b"\x6a\x10") + LOCATION + GOOD + EVIL),
        # Two files for one tensor.
        with_entry(LOCATION + GOOD, field(13, LOCATION + EVIL)),
        with_entry(LOCATION + GOOD, field(13, field(1, b"offset") + field(2, b"1 "))),
        with_entry(LOCATION + GOOD, field(13, field(1, b"unknown") + field(2, b"1"))),
        # The mark outside a tensor: where it is followed, only another reader knows.
        with_entry(LOCATION + GOOD) + field(14, LOCATION + EVIL),
        with_entry(LOCATION + GOOD) + field(99 % 16, LOCATION),
        # Groups, which protobuf readers pass over differently.
        field(7, field(5, b"\x6b" + LOCATION + EVIL + b"\x6c")),
        # Not protobuf.
        LOCATION,
        with_entry(LOCATION + GOOD)[:-1],
        with_entry(LOCATION + field(2, b"\xff\xfe")),
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01" + LOCATION,
    ],
)
def test_what_is_not_certain_is_refused(model):
    assert mentions_external_data(model)
    with pytest.raises(ValueError):
        external_spans(model)


def test_padded_numbers_are_read_as_protobuf_reads_them():
    entry = b"\x8a\x80\x00\x88\x00location" + GOOD
    model = with_entry(entry)
    parsed = onnx.ModelProto.FromString(model).graph.initializer[0].external_data[0]
    assert (parsed.key, parsed.value) == ("location", "good")
    assert external_spans(model) == [Span("good", 0, None)]


WHOLE = everywhere().SerializeToString()


@settings(deadline=None, max_examples=300)
@given(
    st.integers(0, len(WHOLE)),
    st.integers(0, 12),
    st.binary(max_size=6) | st.sampled_from([LOCATION, GOOD, b"\x12", b"\x6a", b"\x0a"]),
)
@example(0, 0, b"")
def test_every_file_that_onnx_would_open_is_told_or_the_model_refused(start, removed, added):
    model = WHOLE[:start] + added + WHOLE[start + removed :]
    try:
        parsed = onnx.ModelProto.FromString(model)
    except Exception:
        return
    if not mentions_external_data(model):
        told = set()
    else:
        try:
            told = {span.file for span in external_spans(model)}
        except ValueError:
            return
    for tensor in parsed.graph.initializer:
        assert {entry.value for entry in tensor.external_data if entry.key == "location"} <= told
