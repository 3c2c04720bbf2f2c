"""What a guest was promised."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Promise:
    """What a guest was promised, from its definition. Shares are numbers here, never levels."""

    cpu_shares: int
    cpu_limit: float
    """Cores; infinity is none."""
    cpu_reservation: float
    memory_shares: int
    memory_reservation: int
    sharing: bool
    swap: bool
    project: str | None = None
    labels: tuple[tuple[str, str], ...] = ()
    rebalance: bool = True
    """Whether the tick may move the guest's weight and balloon."""
    memory_max: int = 0
    """Bytes that the guest can grow to; 0 is unknown."""
    memory_pinned: int = 0
    """Bytes that nobody can take from the guest while it runs, whatever it reserved: all it can grow to, or none."""

    @property
    def memory_kept(self) -> int:
        """Bytes that the guest keeps, by its reservation or because they are pinned."""
        return max(self.memory_reservation, self.memory_pinned)
