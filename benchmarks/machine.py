"""What a measurement was made on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch
import transformers


def machine() -> dict[str, str | int]:
    """Processor, cores, memory, versions and threads."""
    name = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).is_file():
        models = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        name = models[0] if models else name
    return dict(
        processor=name,
        cores=os.cpu_count() or 0,
        threads=torch.get_num_threads(),
        load_average=f"{os.getloadavg()[0]:.1f}",
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
    )
