"""Floor 11: contract suites. Subclass one in your tests, give the fixture it asks for, and pytest runs its laws.

```python
from sparsewright.testing import MaskSolverContract

class TestMySolver(MaskSolverContract):
    @pytest.fixture
    def solver(self):
        return MySolver()
```
"""

from .adapters import AdapterContract
from .examples import PATTERN_TEXTS, kept_exactly, masks_of, sample_stats
from .layout import LayoutContract
from .mask_solver import MaskSolverContract
from .schedule import ScheduleContract
from .sparsifier import SparsifierContract
from .targets import TargetContract

__all__ = [
    "PATTERN_TEXTS",
    "AdapterContract",
    "LayoutContract",
    "MaskSolverContract",
    "ScheduleContract",
    "SparsifierContract",
    "TargetContract",
    "kept_exactly",
    "masks_of",
    "sample_stats",
]
