"""`sparsewright bench`: a bundle or a model against its rivals."""

from typing import Annotated, Literal

import typer

from .console import JsonFlag, print_json, print_table, stage_progress


def bench(
    subject: Annotated[str, typer.Argument(help="A bundle file or a model source.")],
    model: Annotated[str | None, typer.Option(help="Source of the dense model; default what the bundle names.")] = None,
    batches: Annotated[str, typer.Option(help="Batch sizes, comma between.")] = "1,32",
    length: Annotated[int, typer.Option(min=1, help="Tokens per item, where the model takes tokens.")] = 64,
    threads: Annotated[int, typer.Option(help="Intra-op threads.")] = 1,
    seconds: Annotated[float, typer.Option(min=0.01, help="About how long per batch size.")] = 20.0,
    rivals: Annotated[
        Literal["all", "none"], typer.Option(help="torch int8, fp16 file, onnxruntime; or none.")
    ] = "all",
    json: JsonFlag = False,
) -> None:
    """Time it beside the dense model and its rivals, all in one interleaved run with random inputs."""
    from ..hardware import keep_freed_memory
    from ..pipeline import single_steps
    from . import parse

    keep_freed_memory()
    sizes = parse.counts(batches)
    with stage_progress(quiet=json) as progress:
        found = single_steps.bench(
            subject,
            model=model,
            batches=sizes,
            length=length,
            threads=threads,
            seconds=seconds,
            rivals=rivals,
            report=progress,
        )
    if json:
        print_json({size: measurement.to_data() for size, measurement in found.items()})
        return
    for size, measurement in found.items():
        rows = [
            (
                row.name,
                *("-" if v is None else round(1e3 * v, 3) for v in (row.p50_s, row.p95_s, row.p99_s)),
                "-" if row.speedup is None else round(row.speedup, 2),
                "-" if row.throughput_per_s is None else round(row.throughput_per_s, 1),
                "-" if row.file_bytes is None else row.file_bytes,
                "-" if row.load_s is None else round(row.load_s, 2),
            )
            for row in measurement.rows
        ]
        head = ("", "p50 ms", "p95 ms", "p99 ms", "speed-up", "per second", "bytes", "load s")
        print_table(head, rows, f"batch {size}, {threads} thread(s)")
        for row in measurement.rows:
            if row.p50_s is None:
                typer.echo(f"not measured: {row.name}: {row.reason}")
    typer.echo("speed-up: time of torch fp32 / this time, median over paired rounds")
