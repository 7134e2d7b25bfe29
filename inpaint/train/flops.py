"""Peaks of GPUs, for the share of them that a training uses."""

PEAK_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A10G": 70e12,
    "L4": 121e12,
    "T4": 65e12,
    "RTX 4090": 165e12,
}
"""Dense bf16 (T4: fp16) peak in FLOP/s by a part of the device's name, from the makers' data sheets."""


def peak_flops(device_name: str) -> float | None:
    """The peak of a GPU by its name, or None where it is not listed."""
    return next((peak for name, peak in PEAK_FLOPS.items() if name in device_name), None)
