"""Published few-shot results on MVTec-AD and VisA, to stand beside `few_shot`'s.

Mean over categories, then mean and deviation over five draws of the shots, in percent,
as WinCLIP's authors report them (arXiv 2303.14814) for their method, SPADE (arXiv
2005.02357), PaDiM (arXiv 2011.08785) and PatchCore (arXiv 2106.08265); anomaly maps at
256 px, AU-PRO up to a false-positive rate of 0.3. Figures were read in later papers
that repeat those tables; "*" was not checked again. ADP's own are in no public source.
"""

from typing import NamedTuple

from jaxanom.report import tables


class Row(NamedTuple):
    """One published line; shots 0 is zero-shot."""

    dataset: str
    shots: int
    method: str
    image_auroc: str
    pixel_auroc: str
    aupro: str


_MVTEC, _VISA = "MVTec-AD", "VisA"
ROWS = (
    Row(_MVTEC, 0, "WinCLIP", "91.8", "85.1", "64.6"),
    Row(_MVTEC, 1, "SPADE", "81.0 ± 2.0", "91.2 ± 0.4", "83.9*"),
    Row(_MVTEC, 1, "PaDiM", "76.6 ± 3.1", "89.3 ± 0.9", "73.3*"),
    Row(_MVTEC, 1, "PatchCore", "83.4 ± 3.0", "92.0 ± 1.0", "79.7 ± 2.0"),
    Row(_MVTEC, 1, "WinCLIP+", "93.1 ± 2.0", "95.2 ± 0.5", "87.1 ± 1.2"),
    Row(_MVTEC, 2, "SPADE", "82.9*", "92.0*", "85.7*"),
    Row(_MVTEC, 2, "PaDiM", "78.9*", "91.3*", "78.2*"),
    Row(_MVTEC, 2, "PatchCore", "86.3 ± 3.3", "93.3 ± 0.6", "82.3 ± 1.3"),
    Row(_MVTEC, 2, "WinCLIP+", "94.4 ± 1.3", "96.0 ± 0.3", "88.4 ± 0.9"),
    Row(_MVTEC, 4, "SPADE", "84.8 ± 2.5", "92.7 ± 0.3", "87.0 ± 0.5"),
    Row(_MVTEC, 4, "PaDiM", "80.4 ± 2.4", "92.6 ± 0.7", "81.3 ± 1.9"),
    Row(_MVTEC, 4, "PatchCore", "88.8 ± 2.6", "94.3 ± 0.5", "84.3 ± 1.6"),
    Row(_MVTEC, 4, "WinCLIP+", "95.2 ± 1.3", "96.2 ± 0.3", "89.0 ± 0.8"),
    Row(_VISA, 0, "WinCLIP", "78.1", "79.6", "56.8"),
    Row(_VISA, 1, "SPADE", "79.5 ± 4.0", "95.6 ± 0.4", "84.1*"),
    Row(_VISA, 1, "PaDiM", "62.8 ± 5.4", "89.9 ± 0.8", "64.3*"),
    Row(_VISA, 1, "PatchCore", "79.9 ± 2.9", "95.4 ± 0.6", "80.5 ± 2.5"),
    Row(_VISA, 1, "WinCLIP+", "83.8 ± 4.0", "96.4 ± 0.4", "85.1 ± 2.1"),
    Row(_VISA, 2, "SPADE", "80.7*", "96.2*", "85.7*"),
    Row(_VISA, 2, "PaDiM", "67.4*", "92.0*", "70.1*"),
    Row(_VISA, 2, "PatchCore", "81.6 ± 4.0", "96.1 ± 0.5", "82.6 ± 2.3"),
    Row(_VISA, 2, "WinCLIP+", "84.6 ± 2.4", "96.8 ± 0.3", "86.2 ± 1.4"),
    Row(_VISA, 4, "SPADE", "81.7 ± 3.4", "96.6 ± 0.3", "87.3 ± 0.8"),
    Row(_VISA, 4, "PaDiM", "72.8 ± 2.9", "93.2 ± 0.5", "72.6 ± 1.9"),
    Row(_VISA, 4, "PatchCore", "85.3 ± 2.1", "96.8 ± 0.3", "84.9 ± 1.4"),
    Row(_VISA, 4, "WinCLIP+", "87.3 ± 1.8", "97.2 ± 0.2", "87.6 ± 0.9"),
)


def table() -> tables.Table:
    """Returns the published lines under the headings of `few_shot`'s tables."""
    columns = {
        "dataset": "set",
        "shots": "K",
        "method": "method",
        "image_auroc": "Image AUROC",
        "pixel_auroc": "Pixel AUROC",
        "aupro": "AU-PRO",
    }
    lines = [row._asdict() for row in ROWS]
    return tables.from_records(
        lines,
        columns,
        caption="Published, on other images than above",
        notes=("arXiv 2303.14814; * not checked again. ADP's: in no public source.",),
    )
