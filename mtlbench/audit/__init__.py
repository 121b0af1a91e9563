"""Which task's loss reaches which parameter, and whether all ways to the task gradients lead to the same ones.

Usable in any torch code, without Lightning and without Hydra; `mtlbench audit` asks it of a configured model.
"""

from mtlbench.audit.audit import Audit, audit
from mtlbench.audit.findings import Finding
from mtlbench.audit.tables import show

__all__ = ["Audit", "Finding", "audit", "show"]
