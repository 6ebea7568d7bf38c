"""
`python fsdp_on_cpu.py script.py …`: runs a script so that Accelerate takes CPUs with gloo for devices that FSDP shares a model
among. It refuses them otherwise, although torch does it.
"""

import runpy
import sys
from typing import Any

from accelerate.state import PartialState
from accelerate.utils import DistributedType

start = PartialState.__init__


def start_as_devices(self: PartialState, *args: Any, **kwargs: Any) -> None:
    start(self, *args, **kwargs)
    if self._shared_state.get("distributed_type") == DistributedType.MULTI_CPU:
        self._shared_state["distributed_type"] = DistributedType.MULTI_GPU


if __name__ == "__main__":
    PartialState.__init__ = start_as_devices
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
