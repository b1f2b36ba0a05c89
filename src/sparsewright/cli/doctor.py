"""`sparsewright doctor`: what this machine accelerates, and what that means for a model."""

from typing import Annotated

import typer

from .console import JsonFlag, print_json, print_table


def doctor(
    model: Annotated[
        str | None, typer.Argument(help="A model source; without it only the machine is looked at.")
    ] = None,
    minutes: Annotated[float, typer.Option(min=0.01, help="About how long it may take.")] = 2.0,
    batches: Annotated[str, typer.Option(help="Batch sizes, comma between.")] = "1,32",
    length: Annotated[int, typer.Option(min=1, help="Tokens per item, where the model takes tokens.")] = 64,
    threads: Annotated[int, typer.Option(help="Threads that the model will run with.")] = 1,
    json: JsonFlag = False,
) -> None:
    """Say what this machine is, what it accelerates and what not; with a model, whether it is worth a try."""
    from ..hardware import doctor as examine
    from ..hardware import keep_freed_memory
    from .parse import counts

    keep_freed_memory()
    found = examine(model, minutes=minutes, batches=counts(batches), length=length, threads=threads)
    if json:
        print_json(found.to_data())
        return
    machine = found.machine
    isa = " ".join(machine.isa) or "no vector instructions"
    typer.echo(f"{machine.cpu}, {machine.cores} cores, {isa}, {machine.memory_bytes / 2**30:.0f} GiB")
    print_table(("kernel", "state"), list(found.kernels.items()))
    tokens = list(found.accelerations[0].speedups) if found.accelerations else []
    rows = [
        (
            a.pattern,
            *(round(a.speedups[t], 2) if t in a.speedups else "-" for t in tokens),
            a.kernel,
            "; ".join(a.reasons),
        )
        for a in found.accelerations
    ]
    print_table(("pattern", *(f"{t} tokens" for t in tokens), "kernel", "why not"), rows, "speed-up over torch dense")
    for what, why in found.not_accelerated.items():
        typer.echo(f"not accelerated: {what}: {why}")
    if found.model is None:
        return
    told = found.model
    labels = list(told.dense_s)
    rows = [
        (case.pattern, *(round(case.speedups[label], 2) for label in labels), round(case.size_bytes), case.layers)
        for case in told.best_cases
    ]
    print_table(("pattern", *labels, "bytes", "layers"), rows, f"best case for {model}")
    for layer, why in told.no_gain.items():
        typer.echo(f"no gain: {layer}: {why}")
    typer.echo(f"{told.verdict}: {told.because}")
