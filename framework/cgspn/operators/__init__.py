"""Token mixers: modules (B, H, W, C) -> (B, H, W, C), chosen by name from the registry."""

from cgspn.operators.attention import Attention
from cgspn.operators.cgspn import CGSPN
from cgspn.operators.gspn import GSPN
from cgspn.operators.gspn2 import GSPN2

__all__ = ["CGSPN", "GSPN", "GSPN2", "Attention"]
