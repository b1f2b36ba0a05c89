"""Floor 6: targets and what layers cost on them, measured; packing for a target; measuring whole models."""

from .fingerprint import Machine, this_machine
from .int8 import dynamic_int8
from .model_time import LayerTime, ModelTime, model_time, run_model, time_model
from .pack import PackedLayer, pack_
from .profile import Cost, CostRow, Profile
from .store import CostStore, cache_folder
from .target import AbstractTarget, FileTarget, load_target, targets
from .this import ThisTarget, profile, profile_model
from .timing import Ratio, Samples, interleave, speedup, torch_threads

__all__ = [
    "AbstractTarget",
    "Cost",
    "CostRow",
    "CostStore",
    "FileTarget",
    "LayerTime",
    "Machine",
    "ModelTime",
    "PackedLayer",
    "Profile",
    "Ratio",
    "Samples",
    "ThisTarget",
    "cache_folder",
    "dynamic_int8",
    "interleave",
    "load_target",
    "model_time",
    "pack_",
    "profile",
    "profile_model",
    "run_model",
    "speedup",
    "targets",
    "this_machine",
    "time_model",
    "torch_threads",
]
