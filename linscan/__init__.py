"""Linear recurrences for NumPy and CuPy: *ops* say what is computed, *engines* how a loop over time is run."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> the module that holds it, imported when the name is first used.
_HOME = {
    "allpole": "ops.allpole",
    "allpole_vjp": "ops.allpole",
    "assoc_scan": "ops.assoc_scan",
    "assoc_scan_vjp": "ops.assoc_scan",
    "available": "engines",
    "block_scan": "ops.block_scan",
    "block_scan_vjp": "ops.block_scan",
    "block_step": "ops.block_scan",
    "check_vjp": "gradcheck",
    "cross_merge": "ops.cross_scan",
    "cross_merge_vjp": "ops.cross_scan",
    "cross_scan": "ops.cross_scan",
    "cross_scan_vjp": "ops.cross_scan",
    "delta_rule": "ops.delta_rule",
    "delta_rule_step": "ops.delta_rule_step",
    "delta_rule_vjp": "ops.delta_rule",
    "diagonal_init": "ops.nplr",
    "discretize": "ops.discretize",
    "discretize_diag": "ops.discretize_diag",
    "discretize_diag_vjp": "ops.discretize_diag",
    "discretize_vjp": "ops.discretize",
    "dlsim": "ops.lti",
    "dlsim_step": "ops.lti",
    "dlsim_vjp": "ops.lti",
    "dplr_attention": "ops.dplr_attention",
    "dplr_attention_step": "ops.dplr_attention",
    "dplr_attention_vjp": "ops.dplr_attention",
    "fft_conv": "ops.fft_conv",
    "fft_conv_nd": "ops.fft_conv_nd",
    "fft_conv_nd_vjp": "ops.fft_conv_nd",
    "fft_conv_vjp": "ops.fft_conv",
    "grid_scan": "ops.grid_scan",
    "grid_scan_vjp": "ops.grid_scan",
    "hippo": "ops.hippo",
    "lfilter": "ops.filters",
    "lfilter_vjp": "ops.filters",
    "linear_attention": "ops.linear_attention",
    "linear_attention_step": "ops.linear_attention_step",
    "linear_attention_vjp": "ops.linear_attention",
    "local_attention": "ops.local_attention",
    "local_attention_step": "ops.local_attention",
    "local_attention_vjp": "ops.local_attention",
    "lse_scan": "ops.lse_scan",
    "lse_scan_step": "ops.lse_scan",
    "lse_scan_vjp": "ops.lse_scan",
    "lsim": "ops.lsim",
    "lsim_vjp": "ops.lsim",
    "max_scan": "ops.max_scan",
    "max_scan_step": "ops.max_scan",
    "max_scan_vjp": "ops.max_scan",
    "newton_scan": "ops.newton_scan",
    "newton_scan_vjp": "ops.newton_scan",
    "nplr": "ops.nplr",
    "rnn_scan": "ops.rnn_scan",
    "rnn_scan_vjp": "ops.rnn_scan",
    "rnn_step": "ops.rnn_scan",
    "scan": "ops.scan",
    "scan_step": "ops.scan",
    "scan_trace": "ops.scan_trace",
    "scan_vjp": "ops.scan",
    "selective_scan": "ops.selective_scan",
    "selective_scan_vjp": "ops.selective_scan",
    "selective_step": "ops.selective_step",
    "set_workers": "engines.cpu.pool",
    "short_conv": "ops.short_conv",
    "short_conv_nd": "ops.short_conv_nd",
    "short_conv_nd_vjp": "ops.short_conv_nd",
    "short_conv_step": "ops.short_conv",
    "short_conv_vjp": "ops.short_conv",
    "show_config": "_config",
    "softmax_average": "ops.softmax_average",
    "softmax_average_step": "ops.softmax_average",
    "softmax_average_vjp": "ops.softmax_average",
    "sosfilt": "ops.sosfilt",
    "sosfilt_vjp": "ops.sosfilt",
    "ssm_kernel": "ops.ssm_kernel",
    "ssm_kernel_dense": "ops.ssm_kernel_dense",
    "ssm_kernel_dense_vjp": "ops.ssm_kernel_dense",
    "ssm_kernel_dplr": "ops.ssm_kernel_dplr",
    "ssm_kernel_dplr_vjp": "ops.ssm_kernel_dplr",
    "ssm_kernel_vjp": "ops.ssm_kernel",
    "undiscretize": "ops.undiscretize",
    "use_engine": "engines",
    "window_groups": "ops.window_groups",
}

__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from linscan._config import show_config
    from linscan.engines import available, use_engine
    from linscan.engines.cpu.pool import set_workers
    from linscan.gradcheck import check_vjp
    from linscan.ops.allpole import allpole, allpole_vjp
    from linscan.ops.assoc_scan import assoc_scan, assoc_scan_vjp
    from linscan.ops.block_scan import block_scan, block_scan_vjp, block_step
    from linscan.ops.cross_scan import cross_merge, cross_merge_vjp, cross_scan, cross_scan_vjp
    from linscan.ops.delta_rule import delta_rule, delta_rule_vjp
    from linscan.ops.delta_rule_step import delta_rule_step
    from linscan.ops.discretize import discretize, discretize_vjp
    from linscan.ops.discretize_diag import discretize_diag, discretize_diag_vjp
    from linscan.ops.dplr_attention import dplr_attention, dplr_attention_step, dplr_attention_vjp
    from linscan.ops.fft_conv import fft_conv, fft_conv_vjp
    from linscan.ops.fft_conv_nd import fft_conv_nd, fft_conv_nd_vjp
    from linscan.ops.filters import lfilter, lfilter_vjp
    from linscan.ops.grid_scan import grid_scan, grid_scan_vjp
    from linscan.ops.hippo import hippo
    from linscan.ops.linear_attention import linear_attention, linear_attention_vjp
    from linscan.ops.linear_attention_step import linear_attention_step
    from linscan.ops.local_attention import local_attention, local_attention_step, local_attention_vjp
    from linscan.ops.lse_scan import lse_scan, lse_scan_step, lse_scan_vjp
    from linscan.ops.lsim import lsim, lsim_vjp
    from linscan.ops.lti import dlsim, dlsim_step, dlsim_vjp
    from linscan.ops.max_scan import max_scan, max_scan_step, max_scan_vjp
    from linscan.ops.newton_scan import newton_scan, newton_scan_vjp
    from linscan.ops.nplr import diagonal_init, nplr
    from linscan.ops.rnn_scan import rnn_scan, rnn_scan_vjp, rnn_step
    from linscan.ops.scan import scan, scan_step, scan_vjp
    from linscan.ops.scan_trace import scan_trace
    from linscan.ops.selective_scan import selective_scan, selective_scan_vjp
    from linscan.ops.selective_step import selective_step
    from linscan.ops.short_conv import short_conv, short_conv_step, short_conv_vjp
    from linscan.ops.short_conv_nd import short_conv_nd, short_conv_nd_vjp
    from linscan.ops.softmax_average import softmax_average, softmax_average_step, softmax_average_vjp
    from linscan.ops.sosfilt import sosfilt, sosfilt_vjp
    from linscan.ops.ssm_kernel import ssm_kernel, ssm_kernel_vjp
    from linscan.ops.ssm_kernel_dense import ssm_kernel_dense, ssm_kernel_dense_vjp
    from linscan.ops.ssm_kernel_dplr import ssm_kernel_dplr, ssm_kernel_dplr_vjp
    from linscan.ops.undiscretize import undiscretize
    from linscan.ops.window_groups import window_groups


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'linscan' has no attribute {name!r}")
    from linscan.engines import fork

    with fork.loading:  # a child of a fork in between would find the module half imported
        value = getattr(importlib.import_module(f"linscan.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
