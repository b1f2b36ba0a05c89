"""Run benchmarks by name, or all: `python -m benchmarks [linear|bert|...] [--quick]`.

Further options go to the benchmark as they are. Tables lie in `benchmarks/results`; timings are never asserted.
"""

import importlib
import os
import sys
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Run the named benchmarks, or all of them in alphabetical order; 2 for an unknown name."""
    known = sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py"))
    names = [word for word in arguments if not word.startswith("-")] if arguments else []
    # Only leading words are names; words after the first option belong to the benchmark.
    names = names[: next((n for n, word in enumerate(arguments) if word.startswith("-")), len(arguments))]
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"There is no benchmark {unknown[0]!r}. Known: {', '.join(known)}.", file=sys.stderr)
        return 2
    options = arguments[len(names) :]
    # Waiting threads that spin make every figure on a shared machine useless.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for name in names or known:
        module = importlib.import_module(f"benchmarks.bench_{name}")
        print(f"== {name}", flush=True)
        sys.argv = [f"bench_{name}", *options]
        module.main()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
