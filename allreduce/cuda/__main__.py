"""`python -m allreduce.cuda`: what was found on this machine, and what would be chosen."""

import argparse
from collections.abc import Iterator

from allreduce.cuda import CudaInfo, info


def _version(version: tuple[int, int] | None) -> str:
    return ".".join(map(str, version)) if version else "none"


def rows(found: CudaInfo) -> Iterator[tuple[str, str]]:
    """Yield the names and texts of the table."""
    driver, runtime = _version(found.driver_version), _version(found.runtime_version)
    yield "CUDA", f"driver {driver}, runtime {runtime}"
    if found.why_not is not None:
        yield "GPUs", f"none: {found.why_not}"
    for index, device in enumerate(found.devices):
        capability = _version(device.capability)
        memory = f"{device.memory_bytes / 2**30:.0f} GiB"
        reached = " ".join(map(str, device.peers)) or "none"
        text = f"{device.name}, capability {capability}, {memory}, reaches GPUs: {reached}"
        yield f"GPU {index}", text
    if found.available:
        memory_operations = "stream memory operations" if found.stream_memory_operations else None
        yield "flags", memory_operations or "host callbacks"
    if found.nccl is None:
        yield "NCCL", f"none: {found.nccl_why_not}"
    else:
        yield "NCCL", f"{found.nccl.version}, by {found.nccl.source}: {found.nccl.path}"
    yield "local stage", f"{found.local_stage.name}: {found.local_stage.reason}"


def main() -> None:
    """Print the table."""
    text = "Say what of CUDA and NCCL was found on this machine, and what would be chosen."
    parser = argparse.ArgumentParser(prog="python -m allreduce.cuda", description=text)
    parser.parse_args()
    for name, text in rows(info()):
        print(f"{name:<12} {text}")


if __name__ == "__main__":
    main()
