"""Floor 6: targets and what layers cost on them, measured; packing for a target; measuring whole models."""

from .allocator import keep_freed_memory, return_freed_memory, trim_heap
from .calibrate import Calibration, apply_calibration, apply_calibration_once, calibrate
from .calibrated_time import calibrated
from .cold_start import ColdStart, cold_start
from .doctor import Acceleration, BestCase, Doctor, ModelDoctor, doctor
from .energy import PackageCounters, joules_per_call, package_counters
from .energy_windows import EnergyWindow, energy_window
from .fingerprint import Machine, this_machine
from .int8 import dynamic_int8
from .measure import OURS, MeasuredRow, Measurement, measure
from .model_time import LayerTime, ModelTime, model_time, run_model, time_model
from .pack import PackedLayer, pack_
from .profile import Cost, CostRow, Profile
from .random_batch import random_batch
from .rivals import BUILDERS, TORCH_FP32, Rival, build_rivals, weight_bytes
from .store import CostStore, cache_folder
from .target import AbstractTarget, FileTarget, load_target, targets
from .this import ThisTarget, profile, profile_model
from .timing import Ratio, Samples, interleave, speedup, torch_threads

__all__ = [
    "BUILDERS",
    "OURS",
    "TORCH_FP32",
    "AbstractTarget",
    "Acceleration",
    "BestCase",
    "Calibration",
    "ColdStart",
    "Cost",
    "CostRow",
    "CostStore",
    "Doctor",
    "EnergyWindow",
    "FileTarget",
    "LayerTime",
    "Machine",
    "MeasuredRow",
    "Measurement",
    "ModelDoctor",
    "ModelTime",
    "PackageCounters",
    "PackedLayer",
    "Profile",
    "Ratio",
    "Rival",
    "Samples",
    "ThisTarget",
    "apply_calibration",
    "apply_calibration_once",
    "build_rivals",
    "cache_folder",
    "calibrate",
    "calibrated",
    "cold_start",
    "doctor",
    "dynamic_int8",
    "energy_window",
    "interleave",
    "joules_per_call",
    "keep_freed_memory",
    "return_freed_memory",
    "trim_heap",
    "load_target",
    "measure",
    "model_time",
    "pack_",
    "package_counters",
    "profile",
    "profile_model",
    "random_batch",
    "run_model",
    "speedup",
    "targets",
    "this_machine",
    "time_model",
    "torch_threads",
    "weight_bytes",
]
