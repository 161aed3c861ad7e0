"""NVIDIA boards by their published figures: memory, bandwidth, dense matrix rates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

BoardName = Literal["orin-agx-64", "orin-nano-8", "thor", "h200"]
Rate = Literal["fp16", "int8", "fp8"]

FP8_SINCE = (8, 9)
"""Compute capability from which tensor cores multiply fp8."""


@dataclass(frozen=True)
class Board:
    """A board as its maker describes it, at its highest power mode.

    Attributes:
        name: as people say it.
        memory: bytes, of which `shared` says whether CPU and GPU share them.
        bandwidth: of that memory, bytes a second.
        rates: dense (not sparse) operations a second of the GPU's tensor cores, by precision; the Jetsons'
            deep learning accelerators are not counted.
        compute_capability: of the GPU.
        reserved: bytes that system, CUDA context and libraries are assumed to take. No maker publishes
            that; a desktop session on a Jetson takes more.
    """

    name: str
    memory: float
    shared: bool
    bandwidth: float
    rates: Mapping[Rate, float]
    compute_capability: tuple[int, int]
    reserved: float


# Published rates are often for matrices half of whose entries are zero ("sparse"); dense is half of that.
# fp16 is half of int8 on all of these, and fp8 as fast as int8.
BOARDS: Mapping[BoardName, Board] = {
    # NVIDIA Jetson AGX Orin Series data sheet (DS-10662-001, 2023) and technical brief (2022): 64 GB, 204.8
    # GB/s, GPU 170 sparse int8 TOPS at 1.3 GHz (the advertised 275 hold 105 of the accelerators).
    "orin-agx-64": Board(
        name="Jetson AGX Orin 64GB",
        memory=64e9,
        shared=True,
        bandwidth=204.8e9,
        rates={"fp16": 42.5e12, "int8": 85e12},
        compute_capability=(8, 7),
        reserved=2e9,
    ),
    # NVIDIA Jetson Orin Nano Super Developer Kit data sheet and announcement (December 2024): 8 GB, 102 GB/s,
    # 67 sparse int8 TOPS, 33 dense, 17 fp16 TFLOPS.
    "orin-nano-8": Board(
        name="Jetson Orin Nano 8GB (Super)",
        memory=8e9,
        shared=True,
        bandwidth=102e9,
        rates={"fp16": 17e12, "int8": 33e12},
        compute_capability=(8, 7),
        reserved=2e9,
    ),
    # NVIDIA Jetson T5000 data sheet and introduction of Jetson Thor (August 2025): 128 GB, 273 GB/s, 2070
    # sparse fp4 TFLOPS, 1035 sparse fp8 TFLOPS, int8 alike.
    "thor": Board(
        name="Jetson Thor T5000",
        memory=128e9,
        shared=True,
        bandwidth=273e9,
        rates={"fp16": 258.75e12, "int8": 517.5e12, "fp8": 517.5e12},
        compute_capability=(11, 0),
        reserved=2e9,
    ),
    # NVIDIA H200 Tensor Core GPU data sheet (2024), SXM: 141 GB, 4.8 TB/s; sparse 1979 fp16 TFLOPS, 3958 fp8
    # TFLOPS, 3958 int8 TOPS.
    "h200": Board(
        name="H200 SXM",
        memory=141e9,
        shared=False,
        bandwidth=4.8e12,
        rates={"fp16": 989.5e12, "int8": 1979e12, "fp8": 1979e12},
        compute_capability=(9, 0),
        reserved=1e9,
    ),
}
