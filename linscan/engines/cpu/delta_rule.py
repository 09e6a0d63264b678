"""The delta rule on the CPU: `dplr_attention` with one direction to write along."""

from linscan.engines.cpu.dplr_attention import dplr_attention, dplr_attention_pullback, dplr_attention_step
from linscan.engines.delta_terms import by_terms, step_by_terms

delta_rule, delta_rule_pullback = by_terms(dplr_attention, dplr_attention_pullback)
delta_rule_step = step_by_terms(dplr_attention_step)
