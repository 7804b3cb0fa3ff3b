"""What the ranks of a run find in their environment: which devices they have, who started them, how they reach each other."""

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..parallel.standstill import StandstillLimits

DEVICES = "WANTRAIN_DEVICES"  # of this machine: a rank has the one of its local number
AGENT = "WANTRAIN_AGENT"  # the process that started the rank
ENDS = "WANTRAIN_ENDS"  # the folder for a file with the rank's exit code
SILENCE = "WANTRAIN_SILENCE"  # seconds after which a rank or a machine that does not answer is lost
STANDSTILL = "WANTRAIN_STANDSTILL"  # seconds after which a run hangs that stands still in a step whose size is known
_SILENCE_S = 45.0


@dataclass(frozen=True)
class Machines:
    """The machines of a run, and which of them this is; by default the only one."""

    number: int = 0
    size: int = 1
    address: str = ""  # "host:port" of the store of machine 0
    name: str = "run"  # of this start of the run
    devices: str = ""  # of this machine, where they are not those of the job

    @property
    def host(self) -> str:
        """Of machine 0."""
        return self.address.rpartition(":")[0].strip("[]") or "127.0.0.1"

    @property
    def port(self) -> int:
        """Of the store, there; 0: any."""
        return int(self.address.rpartition(":")[2] or 0)


def silence_s() -> float:
    """Seconds after which who does not answer is lost: a run ends within a minute."""
    return float(os.environ.get(SILENCE, _SILENCE_S))


def standstill_limits() -> StandstillLimits:
    """How long a run may stand still before it is ended: other seconds for a link, or a debugger, that takes longer."""
    named = os.environ.get(STANDSTILL)
    return StandstillLimits() if named is None else StandstillLimits(still_s=float(named), host_s=float(named))


def rank_environment(
    given: Mapping[str, str], devices: Sequence[str], ends: Path, machines: Machines
) -> dict[str, str]:
    """What ranks find in their environment, besides what torchrun gives them and what was there.

    gloo, by which they vote, would ask the system for the address of this machine's name, which may be the wrong one: it
    is told by which network to go, where that is known.
    """
    found = {DEVICES: ",".join(devices), AGENT: str(os.getpid()), ENDS: str(ends)}
    if "OMP_NUM_THREADS" not in given:
        found["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // len(devices)))
    network = _network_to(machines) if "GLOO_SOCKET_IFNAME" not in given else ""
    if network:
        found["GLOO_SOCKET_IFNAME"] = network
    if os.name == "nt":
        found["USE_LIBUV"] = "0"
    return found


def _network_to(machines: Machines) -> str:
    """The name of the network interface by which machine 0 is reached; "" where that can't be known."""
    if machines.size == 1:
        return "lo" if sys.platform.startswith("linux") else ""
    try:
        import psutil

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((machines.host, machines.port or 1))  # of a datagram: nothing is sent
            own = probe.getsockname()[0]
        interfaces = psutil.net_if_addrs()
    except (ImportError, OSError):
        return ""
    return next((name for name, addresses in interfaces.items() if any(a.address == own for a in addresses)), "")
