"""What the published inference (Q-Future/Compare2Score) stores about its five KonIQ-10k anchors, as data."""

from __future__ import annotations

ANCHOR_MATRIX = (
    (0.5, 0.2591280937194824, 0.00033130275551229715, 1.6087296899058856e-06, 1.1803027444301506e-09),
    (0.7408719062805176, 0.5, 0.2498534470796585, 0.09995415806770325, 1.8675303081749917e-08),
    (0.9996687173843384, 0.7501465678215027, 0.5, 0.4996888041496277, 0.2485283762216568),
    (0.9999983906745911, 0.9000458717346191, 0.5003111958503723, 0.5, 0.25400182604789734),
    (1.0, 1.0, 0.7514716386795044, 0.7459981441497803, 0.5),
)
"""Preference matrix of the published anchors, entry (i, j) = P(anchor i preferred over anchor j), anchors
in the published order of rising quality. It belongs to those five images and the published weights alone; for
any other anchors or weights the matrix is computed."""
