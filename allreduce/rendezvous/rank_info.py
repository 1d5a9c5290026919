"""Who a rank is and what it was asked for, as it tells the others; and what must be alike."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from allreduce.errors import UsageError
from allreduce.rendezvous.node_layout import NodeIdentity

FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RankInfo:
    """Who a rank is and what it was asked for; rank 0 chooses `group_id` and `secret` (hex)."""

    world_size: int
    lanes: int
    connect: str
    checksum: bool
    nodes: int | list[str] | None
    authenticated: bool
    boot: str
    host: str
    network: str
    pid: int
    unix_name: str
    sources: str = ""  # hash of what the native code was built from
    tuning: str = ""  # digest of the tuning file; "" without one
    failure: str = ""  # why this rank cannot go on
    group_id: int = 0
    secret: str = ""

    @property
    def identity(self) -> NodeIdentity:
        """Return the node of this rank."""
        return NodeIdentity(boot=self.boot, host=self.host, network=self.network)

    def pack(self) -> bytes:
        """Return it as JSON."""
        return json.dumps({"format": FORMAT, **asdict(self)}).encode()

    @classmethod
    def unpack(cls, rank: int, data: bytes) -> RankInfo:
        """Return what `rank` wrote; UsageError if it is not of this version."""
        try:
            fields = json.loads(data)
            if fields.pop("format") != FORMAT:
                raise ValueError("another format")
            return cls(**fields)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"rank {rank} published a description that cannot be read ({error}); "
                "install one version of this package everywhere"
            ) from error

    def check_against(self, rank: int, first: RankInfo) -> None:
        """Raise ValueError, with both values, where `rank` was asked for other than rank 0."""
        if self.authenticated != first.authenticated:
            without = rank if first.authenticated else 0
            raise UsageError(
                f"rank {without} has no job secret but rank {rank - without} has; "
                "set ALLREDUCE_SECRET_FILE or ALLREDUCE_SECRET on all ranks or on none"
            )
        if self.failure:
            raise UsageError(f"rank {rank}: {self.failure}")
        if self.tuning != first.tuning:
            raise UsageError(
                f"rank {rank} has another tuning file than rank 0, or only one of them has one; "
                "give all ranks the same (tuning, ALLREDUCE_TUNING)"
            )
        if self.sources != first.sources:
            raise UsageError(
                f"rank {rank} runs another build than rank 0: its native code was compiled from "
                f"other sources ({self.sources}, {first.sources}); install one build everywhere"
            )
        for name in ("world_size", "lanes", "connect", "nodes", "checksum"):
            mine, theirs = getattr(self, name), getattr(first, name)
            if mine != theirs:
                raise UsageError(
                    f"{name} is {theirs} on rank 0 but {mine} on rank {rank}; give all ranks the "
                    "same"
                )
