"""What a report says of the Mac that it was made on."""

import subprocess
from datetime import UTC, datetime


def this_mac() -> dict[str, str]:
    """Its chip, the build of its system, and the day."""
    return {
        "chip": _said("sysctl", "-n", "machdep.cpu.brand_string").removeprefix("Apple "),
        "os_build": _said("sw_vers", "-buildVersion"),
        "date": datetime.now(UTC).date().isoformat(),
    }


def footprint() -> int:
    """Bytes that this process held at most so far, as macOS counts them."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
