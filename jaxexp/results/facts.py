"""What decides a result beside the sweep, as results say it."""

import platform
from datetime import UTC, datetime
from typing import TypeAlias

from jaxexp.base.versions import version
from jaxexp.planning.programs import Plan

Facts: TypeAlias = dict[str, str | int]


def facts(plan: Plan, device: str, devices: int) -> Facts:
    """What decides a result beside the sweep: versions, devices, plan, and when it was made."""
    precisions = {t.matmul_precision for program in plan.programs for t in program.trials}
    return _environment() | {
        "device": device,
        "precision": ", ".join(sorted(precisions)),  # of products
        "devices": devices,
        "programs": len(plan.programs),
        "plan_trials": plan.trials,
        "plan": str(plan),
    }


def host_facts(plan: str, trials: int) -> Facts:
    """The same of trials that another library has fitted on the host, as `plan` says."""
    return _environment() | {
        "device": platform.machine(),
        "devices": 1,
        "programs": 0,
        "plan_trials": trials,
        "plan": plan,
    }


def _environment() -> Facts:
    return {
        **{name: version(name) for name in ("jaxexp", "jax", "jaxlib", "flax", "optax", "numpy")},
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
