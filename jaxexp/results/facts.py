"""What a result depends on besides the sweep, as results record it."""

import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TypeAlias

from jaxexp.base.files import digest
from jaxexp.base.versions import version
from jaxexp.planning.programs import Plan
from jaxexp.spec.sweep import Sweep

Facts: TypeAlias = dict[str, str | int]


def facts(plan: Plan, sweeps: Sequence[Sweep], device: str, devices: int) -> Facts:
    """What a result depends on besides the sweep (versions, devices, plan …), and when it ran."""
    precisions = {t.matmul_precision for program in plan.programs for t in program.trials}
    return _environment() | {
        "device": device,
        "precision": ", ".join(sorted(precisions)),  # of matrix products
        "devices": devices,
        "programs": len(plan.programs),
        "plan_trials": plan.trials,
        "plan": str(plan),
        "plan_id": plan_id(sweeps),
    }


def host_facts(plan: str, sweep: Sweep) -> Facts:
    """The same facts for trials that another library has fitted on the host, as `plan` says."""
    return _environment() | {
        "device": platform.machine(),
        "devices": 1,
        "programs": 0,
        "plan_trials": len(sweep.trials()),
        "plan": plan,
        "plan_id": plan_id([sweep]),
    }


def plan_id(sweeps: Sequence[Sweep]) -> str:
    """An id that the results of sweeps planned together share, whether resumed or not."""
    return digest(*(part for sweep in sweeps for part in (sweep.name, sweep.id)))


def _environment() -> Facts:
    return {
        **{name: version(name) for name in ("jaxexp", "jax", "jaxlib", "flax", "optax", "numpy")},
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
