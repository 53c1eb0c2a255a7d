"""Line-scan propagation as torch functions: native on CPU and CUDA, with a plain PyTorch reference."""

from cgspn.ops.directions import DIRECTIONS
from cgspn.ops.latent_propagation import latent_propagation
from cgspn.ops.line_scan import line_scan
from cgspn.ops.reference import line_scan_ref, row_stochastic_ref
from cgspn.ops.row_stochastic import row_stochastic
from cgspn.ops.token_linear import layer_norm_linear, linear_residual

__all__ = [
    "DIRECTIONS",
    "latent_propagation",
    "layer_norm_linear",
    "line_scan",
    "line_scan_ref",
    "linear_residual",
    "row_stochastic",
    "row_stochastic_ref",
]
