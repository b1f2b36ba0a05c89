"""What a CUDA device runs, or would run if there were one: for `doctor`. Nothing is measured."""

import torch

from .. import kernels, layouts

# Layout -> how the names of the kernels that read it on a CUDA device begin.
_KERNELS = {"vector": "triton_", "semi_structured": "semi_structured"}
_SIZE, _TOKENS = 64, 4


def cuda_states() -> dict[str, str]:
    """Kernel -> `runs here`, or what it lacks, asked on the CUDA device where there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    mask = (torch.arange(_SIZE) % 4 < 2).repeat(_SIZE, 1)
    states = {}
    for layout, prefix in _KERNELS.items():
        # 2:4 in half precision, few tokens: what all of them take.
        weight = layouts.pack(torch.ones(_SIZE, _SIZE), mask, layout, "2:4", torch.float16).to(device)
        for name, reasons in kernels.why_not(weight, _TOKENS).items():
            if name.startswith(prefix):
                states[name] = "; ".join(reasons) or "runs here"
    return states


def why_no_cuda() -> dict[str, str]:
    """What is not accelerated for want of a CUDA device -> why, and what one would bring; empty where there is one."""
    if torch.cuda.is_available():
        return {}
    return {
        "sparse tensor cores": "there is no CUDA device; one of compute capability 8.0 or newer runs 2:4 with the "
        "layout semi_structured",
        "GPU kernels": "there is no CUDA device; on one, Triton kernels run what is packed in the layout vector",
    }
