"""Tables of what `comparison` measured: means over draws, and what tuning changed."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxanom.report import tables

METRICS = {
    "image_auroc": "Image AUROC",
    "pixel_auroc": "Pixel AUROC",
    "pixel_aupro": "AU-PRO",
}


def table(results: Mapping[str, Mapping[str, Any]], metric: str) -> tables.Table:
    """Mean and standard deviation over draws, one row a set and number of shots."""
    rows: dict[tuple[str, int], dict[str, list[float]]] = {}
    for key, entry in results.items():
        name, shots, _ = key.rsplit("-", 2)
        row = rows.setdefault((name, int(shots)), {})
        for variant, values in entry["variants"].items():
            if metric in values and values[metric] is not None:
                row.setdefault(variant, []).append(100 * values[metric])
    variants = list(dict.fromkeys(v for row in rows.values() for v in row))
    lines = [
        {
            "set": name,
            "shots": shots,
            **{
                v: f"{np.nanmean(row[v]):.1f} ± {np.nanstd(row[v]):.1f}"
                for v in variants
                if v in row
            },
        }
        for (name, shots), row in sorted(rows.items())
    ]
    columns = {"set": "set", "shots": "K", **{v: v for v in variants}}
    return tables.from_records(lines, columns, caption=METRICS[metric])


def tuning_table(results: Mapping[str, Mapping[str, Any]]) -> tables.Table:
    """What self-tuning changed, and what it went by; one row a set and shots.

    Gains are of the tuned settings over the default, in points, mean and deviation over
    draws; acceptance is the mean over kinds of normals, and of anomalies.
    """
    rows: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for key, entry in results.items():
        name, shots, _ = key.rsplit("-", 2)
        rows.setdefault((name, int(shots)), []).append(entry)
    lines = []
    for (name, shots), entries in sorted(rows.items()):
        line: dict[str, Any] = {"set": name, "shots": shots}
        for metric, heading in METRICS.items():
            gains = [
                entry["variants"]["adp"][metric]
                - entry["variants"]["adp, default"][metric]
                for entry in entries
                if entry["variants"]["adp"].get(metric) is not None
            ]
            if gains:
                line[heading] = tables.mean_std(gains, 100, 1)
        agreements = [e["agreement"] for e in entries if e.get("agreement") is not None]
        line["agreement"] = f"{np.mean(agreements):.2f}" if agreements else "-"
        for kind in ("normal", "anomaly"):
            rates = [
                rate
                for entry in entries
                for facts in entry["tuning"].values()
                for source, rate in facts.get("accepted", {}).items()
                if source.startswith(kind)
            ]
            line[f"{kind} accepted"] = f"{100 * np.mean(rates):.0f} %" if rates else "-"
        lines.append(line)
    names = dict.fromkeys(key for line in lines for key in line)
    columns = {key: "K" if key == "shots" else key for key in names}
    return tables.from_records(lines, columns, caption="Self-tuning")
