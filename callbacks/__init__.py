"""Interventions and monitors: independent Lightning callbacks, one a file."""

from __future__ import annotations

from lit_gfs.callbacks.gradient_flow import GradientFlowMonitor

__all__ = ["GradientFlowMonitor"]
