"""Names of categories and defect types, and which defects each category can have."""

from jaxanom.errors import check_known

TEXTURES = (
    "carpet",
    "leather",
    "wood",
    "tile",
    "grid",
    "metal",
    "marble",
    "fabric",
    "cork",
)
OBJECTS = ("nut", "gear", "button", "pill", "cookie", "chip", "cable", "cap")
LOGICAL = ("juice_bottle", "tray")

EXPERIMENT_CATEGORIES = ("panel",)
"""Made for one experiment; in neither of the two lists that divide the rest."""

HELD_OUT_CATEGORIES = ("marble", "cork", "gear", "pill", "tray")
"""Never seen in pre-training: textures, objects and one logical category."""

CATEGORIES = TEXTURES + OBJECTS + LOGICAL + EXPERIMENT_CATEGORIES

TRAIN_CATEGORIES = tuple(
    name for name in TEXTURES + OBJECTS + LOGICAL if name not in HELD_OUT_CATEGORIES
)

DEFECT_TYPES = (
    "scratch",
    "crack",
    "hole",
    "stain",
    "dent",
    "contamination",
    "missing_part",
    "misplaced_part",
    "extra_part",
    "wrong_color",
    "wrong_level",
    "floating",
    "rust",
)
"""Every defect type; the normal state "good" is not one of them."""

_DEFECTS = {
    "carpet": ("hole", "stain", "contamination", "wrong_color", "scratch"),
    "leather": ("scratch", "crack", "hole", "stain", "dent", "wrong_color"),
    "wood": ("scratch", "crack", "hole", "stain", "contamination"),
    "tile": ("scratch", "crack", "hole", "stain", "wrong_color"),
    "grid": ("missing_part", "misplaced_part", "stain", "contamination"),
    "metal": ("scratch", "dent", "hole", "stain", "contamination"),
    "marble": ("scratch", "crack", "hole", "stain", "contamination"),
    "fabric": ("scratch", "hole", "stain", "contamination", "wrong_color"),
    "cork": ("scratch", "crack", "hole", "stain", "contamination"),
    "nut": ("scratch", "crack", "dent", "stain", "missing_part"),
    "gear": ("scratch", "crack", "stain", "dent", "missing_part"),
    "button": ("scratch", "crack", "missing_part", "misplaced_part", "extra_part"),
    "pill": ("crack", "stain", "contamination", "missing_part", "wrong_color"),
    "cookie": ("crack", "hole", "contamination", "missing_part", "extra_part"),
    "chip": ("scratch", "crack", "contamination", "missing_part", "misplaced_part"),
    "cable": ("hole", "contamination", "missing_part", "misplaced_part", "wrong_color"),
    "cap": ("scratch", "dent", "stain", "missing_part", "misplaced_part"),
    "juice_bottle": (
        "crack",
        "missing_part",
        "misplaced_part",
        "wrong_color",
        "wrong_level",
        "floating",
    ),
    "tray": (
        "contamination",
        "missing_part",
        "misplaced_part",
        "extra_part",
        "wrong_color",
    ),
    "panel": ("rust",),
}


def defect_types(category: str) -> tuple[str, ...]:
    """The defect types of a category, without "good"; raises on unknown names."""
    check_known("category", category, CATEGORIES)
    return _DEFECTS[category]
