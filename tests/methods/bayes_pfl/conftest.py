"""Lets test modules here import the modules beside them, and the released names."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "parity" / "bayes_pfl")]
