"""A guest of one disk sector: it runs under KVM wherever firmware does, and answers for vCPUs as an operating system.

QEMU's registers for plugging CPUs (docs/specs/acpi_cpu_hotplug in its source), on a q35 machine at 0xcd8: a CPU is
chosen by its number in the first, and its byte at +4 tells with bit 2 that it is to be given up, which writing bit 3
does. Writing 0 to the first at all is how a system says that it knows them.
"""

import struct

RUNS = b"+"
"""What it says on its serial port when it has begun."""
_CHOOSE, _STATE, _SERIAL = 0xCD8, 0xCDC, 0x3F8
_MOST_VCPUS = 8


def boot_sector(lets_go: bool) -> bytes:
    """Code for the first sector of a disk. It looks at every vCPU at each tick of the clock, and gives up those that
    are asked for, or none."""
    port = struct.Struct("<H").pack
    choose, state = b"\xba" + port(_CHOOSE), b"\xba" + port(_STATE)  # mov dx, …
    give_up = b"\xb0\x08\xee"  # mov al, 8; out dx, al
    look = b"".join((
        choose, b"\x66\x89\xc8\x66\xef",  # mov eax, ecx; out dx, eax
        state, b"\xec\xa8\x04",  # in al, dx; test al, 4
        b"\x74" + bytes([len(give_up)]) + give_up if lets_go else b"",  # jz past it
        b"\x41\x83\xf9" + bytes([_MOST_VCPUS]),  # inc cx; cmp cx, …
    ))  # fmt: skip
    known = choose + b"\x66\x31\xc0\xee"  # xor eax, eax; out dx, al
    again = b"\x66\x31\xc9" + look  # xor ecx, ecx
    again += b"\x72" + _back(len(look) + 2) + b"\xf4"  # jb look; hlt
    known += b"\xba" + port(_SERIAL) + b"\xb0" + RUNS + b"\xee"  # mov dx, …; mov al, RUNS; out dx, al
    code = known + again + b"\xeb" + _back(len(again) + 2)  # jmp again
    return code.ljust(510, b"\0") + b"\x55\xaa"


def _back(distance: int) -> bytes:
    return bytes([256 - distance])
