"""Renders `benchmarks/RESULTS.md` and its plots from the records.

    python -m benchmarks.results

Of every case the newest row counts; the record keeps the older ones.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import harness
from jaxanom.report import figures, tables

PAGE = Path(__file__).parent / "RESULTS.md"
Row = Mapping[str, Any]


class Plot(NamedTuple):
    """Rows of a section as lines, on logarithmic axes.

    Attributes:
      prefix: How the cases that are drawn begin; the words after their first comma are
        the legend.
      x, y: Keys of a row.
      x_label, y_label: What they measure.
    """

    prefix: str
    x: str
    y: str
    x_label: str
    y_label: str


class Section(NamedTuple):
    """One benchmark on the page.

    Attributes:
      name: The benchmark and its record.
      title: The heading.
      about: What is compared, in a sentence or two.
      columns: Keys of a row -> headings.
      key: Fields that make a case, besides its name.
      plots: What is drawn below, side by side.
    """

    name: str
    title: str
    about: str
    columns: Mapping[str, str]
    key: tuple[str, ...] = ()
    plots: tuple[Plot, ...] = ()


_TIMES = {
    "median_s": "median (s)",
    "iqr_s": "IQR (s)",
    "compile_s": "compile (s)",
    "load": "load",
}
SECTIONS = (
    Section(
        "unet",
        "Denoising UNet",
        "The same weights and inputs in diffusers' PyTorch class (eager, channels "
        "last, `torch.compile`), in its Flax class and in ours. A train step is noise "
        "prediction with AdamW; inversion and generation are moves of DDIM.",
        {
            "size": "size",
            "batch": "B",
            "case": "case",
            **_TIMES,
            "times_ours": "time / ours",
            "error": "error to PyTorch",
        },
        ("size", "batch", "device"),
    ),
    Section(
        "attention",
        "Attention",
        "Gradients of attention by query, key and value in each form of "
        "`jaxanom.models.ops.attention`; `choose` takes one by backend and shape.",
        {
            "case": "case",
            **_TIMES,
            "chosen": "chosen",
            "times_ours": "time / chosen",
            "error": "difference to matmul",
        },
        ("device",),
    ),
    Section(
        "defect_generation",
        "Defect generation",
        "Embedded towers at 64 px. A train step runs 2 B rows through the UNet; a "
        "generated image costs 3 S rows, 2 S replayed.",
        {"case": "case", **_TIMES, "rate": "rate", "unit": ""},
    ),
    Section(
        "programs",
        "Programs",
        "Traced or compiled, not run. A train step of Stable Diffusion 1.5's UNet: "
        "operations over a count by hand, and bytes of the state whose memory its "
        "results take over. A walk of the embedded UNet: seconds to compile.",
        {
            "case": "case",
            "gflop": "GFLOP",
            "flops_over_hand": "over the hand count",
            "donated_over_state": "donated / state",
            "compile_s": "compile (s)",
            "compile_iqr_s": "IQR (s)",
            "compile_over_one_move": "over one move",
        },
        ("size",),
    ),
    Section(
        "trade_off",
        "Network calls against quality",
        "A fine-tuned generator on the embedded towers. Defect: distance of the "
        "latents inside the mask from a walk of 200 DDIM moves from the same noise, "
        "background replayed. Round trip: background error after inversion with k "
        "fixed-point iterations a move and recomputed sampling. linspace: even "
        "indices; log_snr: even in log SNR. Calls are those of inversion and sampling "
        "together.",
        {
            "case": "case",
            "calls": "network calls",
            "error": "relative error",
            "worst": "worst image",
            "background": "background, largest change",
            "num_images": "images",
            "seed": "seed",
        },
        plots=(
            Plot(
                "defect", "calls", "error", "network calls an image", "defect: distance"
            ),
            Plot(
                "round trip",
                "per_move",
                "error",
                "network calls a move of the inversion",
                "background: round-trip error",
            ),
        ),
    ),
    Section(
        "sixteen_devices",
        "Sixteen devices",
        "Trainings compiled for sixteen devices, per device; nothing is run. sd15: all "
        "of Stable Diffusion 1.5 at 512 px in bfloat16 with float32 state; pfl: "
        "Bayes-PFL on ViT-L/14 at 518 px. Blocks are recomputed (remat full). v5e:4x4: "
        "by the TPU's own compiler.",
        {
            "case": "case",
            "devices": "devices",
            "global_batch": "global batch",
            "params_gib": "parameters (GiB)",
            "optimizer_gib": "optimizer (GiB)",
            "frozen_gib": "frozen (GiB)",
            "working_gib": "working (GiB)",
            "total_gib": "in all (GiB)",
            "received_gib": "received a step (GiB)",
            "tflop_per_step_and_device": "TFLOP a step",
            "compile_s": "compile (s)",
        },
        ("devices",),
    ),
    Section(
        "bayes_pfl",
        "Bayes-PFL",
        "One training step and one evaluated image: the released loop in PyTorch, ours "
        "as that computes, with the exact savings, and with cached image features.",
        {
            "size": "size",
            "case": "case",
            **_TIMES,
            "flops_share": "FLOPs / plain",
            "times_torch": "times as fast as PyTorch",
        },
        ("size", "batch", "device"),
    ),
    Section(
        "posterior",
        "Particle flows",
        "One SVGD update of N particles in 8192 dimensions; and the four ways to shard "
        "the particles.",
        {"case": "case", **_TIMES, "relative": "difference"},
        ("D", "device"),
        (Plot("svgd", "N", "median_s", "particles", "seconds"),),
    ),
    Section(
        "posterior_step",
        "APP training step",
        'A step over N particles and C classes at RN50\'s text tower ("short": 3 of '
        "its 12 layers), beside a plain PyTorch loop of the same mathematics.",
        {
            "size": "size",
            "case": "case",
            **_TIMES,
            "share": "FLOPs / plain",
            "times_torch": "times as fast as PyTorch",
            "difference": "difference of gradients",
        },
        ("size", "device"),
    ),
    Section(
        "personal_tokens",
        "ADP personal tokens",
        "Inversion of tokens on the embedded towers, side by side in one program, "
        "beside a plain PyTorch loop of the same mathematics on one token; rates are "
        "steps times tokens.",
        {
            "case": "case",
            **_TIMES,
            "rate": "token steps / s",
            "times_torch": "times as fast as PyTorch",
            "difference": "difference of vectors",
        },
        ("steps", "batch", "device"),
    ),
    Section(
        "tuning_grid",
        "ADP self-tuning",
        "J of thousands of settings on 256 synthetic images, beside a loop that calls "
        "scikit-learn; the loop is timed on as many settings as its row says.",
        {
            "case": "case",
            "settings": "settings",
            "median_s": "median (s)",
            "iqr_s": "IQR (s)",
            "load": "load",
            "rate": "settings / s",
            "times_loop": "times as fast as the loop",
            "difference": "difference of J",
        },
        ("settings", "device"),
    ),
    Section(
        "metrics",
        "Metrics",
        "All image and pixel metrics on 200 maps of 518 x 518.",
        {
            "case": "case",
            "num_images": "images",
            "median_s": "median (s)",
            "load": "load",
            "times_ours": "time / ours",
            "error": "largest difference",
        },
        ("num_images", "image_size"),
    ),
    Section(
        "cold_start",
        "Start",
        "From the command to the first training step; one start each.",
        {
            "case": "case",
            "median_s": "seconds",
            "compile_s": "of them compiling (s)",
            "load": "load",
        },
    ),
    Section(
        "preemption",
        "Stopping",
        "From SIGTERM, at a random moment of its first steps, to the exit of the "
        "embedded generator's training, which saves its state and goes on from it.",
        {
            "case": "case",
            "repeats": "trials",
            "median_s": "median (s)",
            "iqr_s": "IQR (s)",
            "max_s": "longest (s)",
            "rate": "share saved and resumed, within 5 s",
        },
    ),
)
NO_ACCELERATOR = """## Not measured

No GPU or TPU was at hand: `make bench-gpu` has their rows (Stable Diffusion 1.5's UNet
at 512 px in bfloat16 beside `torch.compile`, 50-step walks, Bayes-PFL at the published
size, SVGD with 4096 particles)."""


def newest(rows: Sequence[Row], key: Sequence[str]) -> list[Row]:
    """Keeps the last row of every case, in the order of the last run."""
    cases: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        values = {**row, "device": row["machine"]["device_kind"]}
        name = (row["case"], *(str(values.get(field)) for field in key))
        cases.pop(name, None)
        cases[name] = row
    return list(cases.values())


def circumstances(rows: Sequence[Row]) -> str:
    """Says where, when and with what the rows were measured: a line for each place."""
    places: dict[str, None] = {}
    for row in rows:
        machine, versions = row["machine"], row["versions"]
        places[
            f"{row['time']}, {machine['processor']}, {machine['cores']} cores, device "
            f"{machine['device_kind']}; jax {versions['jax']}, "
            f"Python {versions['python']}."
        ] = None
    return "\n".join(places)


def panel_of(title: str, rows: Sequence[Row], plot: Plot) -> figures.Panel:
    """Groups rows by the words after the comma of their case."""
    groups: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["case"].startswith(plot.prefix):
            name = row["case"].split(", ", 1)[1]
            groups.setdefault(name, []).append((row[plot.x], row[plot.y]))
    series = tuple(
        figures.Series(name, *zip(*sorted(points), strict=True))
        for name, points in groups.items()
    )
    axes = plot.x_label, plot.y_label
    return figures.Panel(title, *axes, series, log_x=True, log_y=True)


def render(section: Section, rows: Sequence[Row]) -> str:
    """Returns the section as Markdown."""
    rows = newest(rows, section.key)
    cells = [
        {k: f"{v:.3g}" if isinstance(v, float) else v for k, v in row.items()}
        for row in rows
    ]
    if "load" in section.columns:
        for line, row in zip(cells, rows, strict=True):
            line["load"] = f"{row['load_average'][0]:.2g}"
    columns = {
        name: heading
        for name, heading in section.columns.items()
        if any(row.get(name) is not None for row in cells)
    }
    table = tables.to_markdown(tables.from_records(cells, columns))
    parts = [f"## {section.title}", section.about, circumstances(rows), table]
    if section.plots:
        panels = [panel_of(section.title, rows, plot) for plot in section.plots]
        path = harness.RECORDS / f"{section.name}.png"
        figures.write_plots(panels, path)
        parts.append(f"![{section.title}](records/{path.name})")
    return "\n\n".join(parts)


def write() -> Path:
    """Writes the page; returns its path."""
    parts = [
        "# Results",
        "Written by `python -m benchmarks.results` from `benchmarks/records`; rows "
        "come from `make bench`. Medians, with the distance of the quartiles. Rows "
        "that differ in the implementation alone were timed turn by turn in one run, "
        "other rows may be of other runs; load is the machine's average over the "
        "minute before a run ended.",
    ]
    kinds = set()
    for section in SECTIONS:
        path = harness.RECORDS / f"{section.name}.jsonl"
        if path.is_file():
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            kinds |= {row["machine"]["device_kind"] for row in rows}
            parts.append(render(section, rows))
    if kinds <= {"cpu"}:
        parts.append(NO_ACCELERATOR)
    PAGE.write_text("\n\n".join(parts) + "\n")
    return PAGE


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.results", description="Writes the page; no flags."
    )
    parser.parse_args(arguments)
    print(write())


if __name__ == "__main__":
    main()
