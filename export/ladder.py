"""The ladder of precisions: a float32 graph in, the same graph in fewer bits out.

Precision lies in the graph and not in a builder's flags, so that what is compiled is what was measured. Each
rung below float32 is float16 with something smaller inside it:

    fp16  weights and activations, but for what overflows there (see `export.half`)
    int8  products of eight-bit integers (see `export.int8`)
    int4  weights of matrix products in blocks of four bits (see `export.int4`)
    fp8   products of eight-bit floats (see `export.fp8`), compute capability 8.9 and newer

Needs no torch: it runs on the device, in `c2s build`.
"""

from __future__ import annotations

from itertools import chain

import onnx_ir as ir

from compare2score.bundle import Bundle
from compare2score.engine import Precision
from compare2score.errors import ExportError
from compare2score.export.float_graph import read_float_graph, read_graph
from compare2score.export.fp8 import to_fp8
from compare2score.export.half import to_half
from compare2score.export.int4 import to_int4
from compare2score.export.int8 import to_int8
from compare2score.export.products import Samples

CALIBRATED: tuple[Precision, ...] = ("int8", "fp8")
"""Precisions that must be shown how large activations get."""
PREFIX = ("keys", "values", "prefix_keys", "prefix_values")
"""Inputs and outputs that become float16 with the rest: the prefix is read anew for every image."""


def graph_in(bundle: Bundle, graph: str, precision: Precision, samples: Samples = ()) -> ir.Model:
    """One of a bundle's graphs in a precision; as it is stored, if that is the bundle's.

    Raises ExportError if the graph cannot be read or brought to that precision.
    """
    stored = bundle.manifest.precision
    if stored == precision and precision in ("fp16", "int4"):
        return read_graph(bundle.graph(graph))
    if precision == "fp32" and stored in ("fp16", "int4"):
        raise ExportError(f"{bundle.path} stores {stored}, of which fp32 is no more exact; choose fp16.")
    # Four bits are for the decoder, whose weights are most of what is read for an image.
    rung: Precision = "fp16" if (graph, precision) == ("vision", "int4") else precision
    return to_precision(read_float_graph(bundle.graph(graph)), rung, samples)


def to_precision(model: ir.Model, precision: Precision, samples: Samples = ()) -> ir.Model:
    """Brings a float32 graph to a precision, in place where that can be.

    Inputs and outputs stay float32, but for a prefix's keys and values.

    Args:
        model: e.g. from `read_float_graph`.
        precision: a rung of the ladder.
        samples: inputs of the graph that show the range of its activations, for int8 and fp8.

    Raises:
        ExportError: a precision that needs samples gets none.
    """
    if precision == "fp32":
        return model
    if precision in CALIBRATED:
        shown = iter(samples)
        first = next(shown, None)
        if first is None:
            raise ExportError(f"{precision} needs images to calibrate with; give some.")
        calibrate = to_int8 if precision == "int8" else to_fp8
        model = calibrate(model, chain([first], shown))
    elif precision == "int4":
        model = to_int4(model)
    return to_half(model, PREFIX)
