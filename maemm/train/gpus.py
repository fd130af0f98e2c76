"""GPUs by their makers' data sheets, and what large kernels reach of it."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """A GPU. Rates are dense, those of products in bf16 with sums in fp32."""

    key: str  # in options of the command line
    pattern: str  # of the names that drivers give it
    bf16: float  # TFLOP/s
    tf32: float  # TFLOP/s; fp32 where there is no TF32
    fp32: float  # TFLOP/s, without tensor cores
    memory: float  # GB (1e9 bytes) of the data sheet
    bandwidth: float  # GB/s, of its memory
    link: float  # GB/s in one direction, to the other GPUs of a node
    link_name: str = "NVLink"


# Of NVIDIA's, AMD's data sheets of the SXM/OAM form where the name has no other; the first pattern that fits counts.
# NVLink is given there for both directions: here it is half. PCIe 4 x16 is 32 GB/s, PCIe 5 x16 is 64 GB/s.
GPUS = (
    Gpu("b200", r"\bB200\b", 2250.0, 1125.0, 75.0, 180.0, 7700.0, 900.0),
    Gpu("h200-nvl", r"\bH200 NVL", 835.0, 417.0, 60.0, 141.0, 4800.0, 450.0),
    Gpu("h100-nvl", r"\bH100 NVL", 835.0, 417.0, 60.0, 94.0, 3900.0, 300.0),
    Gpu("h100-pcie", r"\bH100 PCIe", 756.0, 378.0, 51.0, 80.0, 2000.0, 64.0, "PCIe 5"),
    Gpu("h200", r"\b(G?H200|GH200)\b", 989.0, 494.5, 67.0, 141.0, 4800.0, 450.0),
    Gpu("h100", r"\bH100\b", 989.0, 494.5, 67.0, 80.0, 3350.0, 450.0),
    Gpu("a100-40", r"\bA100\b.*40GB", 312.0, 156.0, 19.5, 40.0, 1555.0, 300.0),
    Gpu("a100-80", r"\bA100\b", 312.0, 156.0, 19.5, 80.0, 2039.0, 300.0),
    Gpu("a30", r"\bA30\b", 165.0, 82.0, 10.3, 24.0, 933.0, 32.0, "PCIe 4"),
    Gpu("a40", r"\bA40\b", 149.7, 74.8, 37.4, 48.0, 696.0, 32.0, "PCIe 4"),
    Gpu("a10", r"\bA10\b", 125.0, 62.5, 31.2, 24.0, 600.0, 32.0, "PCIe 4"),
    Gpu("l40s", r"\bL40S\b", 362.0, 183.0, 91.6, 48.0, 864.0, 32.0, "PCIe 4"),
    Gpu("l40", r"\bL40\b", 181.0, 90.5, 90.5, 48.0, 864.0, 32.0, "PCIe 4"),
    Gpu("l4", r"\bL4\b", 121.0, 60.0, 30.3, 24.0, 300.0, 32.0, "PCIe 4"),
    Gpu("rtx6000-ada", r"RTX 6000 Ada", 364.2, 182.1, 91.1, 48.0, 960.0, 32.0, "PCIe 4"),
    Gpu("a6000", r"RTX A6000", 154.8, 77.4, 38.7, 48.0, 768.0, 32.0, "PCIe 4"),
    Gpu("rtx5090", r"RTX 5090$", 209.5, 104.8, 104.8, 32.0, 1792.0, 64.0, "PCIe 5"),
    Gpu("rtx4090", r"RTX 4090$", 165.2, 82.6, 82.6, 24.0, 1008.0, 32.0, "PCIe 4"),
    Gpu("rtx3090", r"RTX 3090$", 71.0, 35.6, 35.6, 24.0, 936.0, 32.0, "PCIe 4"),
    Gpu("mi250x", r"\bMI250X\b", 191.5, 47.9, 47.9, 64.0, 1638.0, 100.0, "Infinity Fabric"),  # one of its two dies
    Gpu("mi300x", r"\bMI300X\b", 1307.4, 653.7, 163.4, 192.0, 5300.0, 448.0, "Infinity Fabric"),
)
#: a part of a device, and slower ones by their power limit: what they can do is measured
NOT_WHOLE = r"\b(MIG|Laptop)\b"

# The model of a GPU's time: each operation takes the longest of its launches, its bytes and its multiplications.
LAUNCH_S = 4e-6  # in which the host of an eager step gets to the next operation
BANDWIDTH_SHARE, PRODUCT_SHARE, ATTENTION_SHARE = 0.85, 0.75, 0.5  # of the data sheet, that large kernels reach
USABLE_SHARE = 0.92  # of the memory: the rest is the driver's, the libraries' and lost between blocks
NODE, NETWORK_GBS = 8, 50.0  # GPUs of a node, and GB/s of each of them to other nodes (400 Gbit/s)


def named(name: str) -> Gpu | None:
    """The GPU whose driver says ``name``; None where it is not in the list, or is only a part of one."""
    if re.search(NOT_WHOLE, name):
        return None
    return next((gpu for gpu in GPUS if re.search(gpu.pattern, name)), None)
