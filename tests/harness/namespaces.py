"""Processes with a network of their own each: namespaces on one bridge, of which pairs can be parted.

What is parted loses every packet: nobody refuses, resets or acknowledges anything, of connections old and new. A proxy
cannot do that, for the machine it runs on answers for it.

All of it lives in a network and a mount namespace that end with the program that `INSIDE` starts; needs Linux and
iproute2, and either root or user namespaces.
"""

import shutil
import subprocess

INSIDE = ("unshare", "--net", "--mount", "--map-root-user", "--")
NETWORK = "10.7.0"
BRIDGE = "bridge"
WAIT_S = 10.0


def are_possible() -> bool:
    """Whether this machine lets us make them."""
    if not all(map(shutil.which, ("ip", "unshare", "mount"))):
        return False
    trial = f"mount -t tmpfs tmpfs /run && ip link add {BRIDGE} type bridge && ip netns add trial"
    done = subprocess.run([*INSIDE, "sh", "-c", trial], capture_output=True, timeout=WAIT_S, check=False)
    return done.returncode == 0


class Namespaces:
    """The namespaces 1, 2, …, and this process, which reaches all of them. Runs `INSIDE`."""

    def __init__(self) -> None:
        self._count = 0
        _run("mount", "-t", "tmpfs", "tmpfs", "/run")
        _ip("link", "set", "lo", "up")
        _ip("link", "add", BRIDGE, "type", "bridge")
        _ip("addr", "add", f"{NETWORK}.254/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")

    def add(self) -> int:
        """One more; gives its number."""
        self._count += 1
        name, outside = f"space{self._count}", f"port{self._count}"
        _ip("netns", "add", name)
        _ip("link", "add", outside, "type", "veth", "peer", "name", "inside", "netns", name)
        _ip("link", "set", outside, "master", BRIDGE, "up")
        _ip("-n", name, "addr", "add", f"{self.host(self._count)}/24", "dev", "inside")
        _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", name, "link", "set", "inside", "up")
        return self._count

    def host(self, number: int) -> str:
        """Its address."""
        return f"{NETWORK}.{number}"

    def entered(self, number: int, argv: tuple[str, ...]) -> tuple[str, ...]:
        """The same program in a namespace."""
        return (str(shutil.which("ip")), "netns", "exec", f"space{number}", *argv)

    def part(self, *numbers: int) -> None:
        """From now on nothing passes between any two of these; all reach everybody else."""
        self._isolate(numbers, "on")

    def join(self, *numbers: int) -> None:
        """They reach each other again."""
        self._isolate(numbers, "off")

    def _isolate(self, numbers: tuple[int, ...], state: str) -> None:
        for number in numbers:
            _ip("link", "set", "dev", f"port{number}", "type", "bridge_slave", "isolated", state)


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"
