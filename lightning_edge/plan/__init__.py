"""Planning: who works on which part of the model, on which rows, and in which order.

Pure: no torch, no network, no clock.
"""

from lightning_edge.plan.plan import Pipeline, Plan, Stage

__all__ = ["Pipeline", "Plan", "Stage"]
