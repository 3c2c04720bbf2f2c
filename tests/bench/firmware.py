"""A guest without an operating system, for hosts where /dev/kvm runs firmware and Linux does not boot under it: one
boot sector that keeps its vCPUs busy."""

from __future__ import annotations

SECTOR = 512
DISK = 1 << 20
"""Bytes of the image: what a disk should have at least."""
TICK_MS = 1000 / 18.2065
"""Milliseconds between two ticks of the BIOS clock."""

_AT = 0x7C00
"""Where the firmware loads a boot sector."""
_BEGIN = bytes.fromhex("fa 31c0 8ed8 8ed0 bc007c")
"""cli; xor ax, ax; mov ds, ax; mov ss, ax; mov sp, 0x7c00"""
_OTHERS = (
    "0f0116{gdtr}"  #         lgdt [gdtr]
    "0f20c00c010f22c0"  #     mov eax, cr0; or al, 1; mov cr0, eax
    "ea{next}0800"  #         jmp 8:next                       from here on 32 bits, and memory from 0 to 4 GiB
    "66b810008ed8"  #         mov ax, 0x10; mov ds, ax
    "c70500800000faebfe90"  # mov dword [0x8000], 0x90feebfa   what the other vCPUs run: cli; jmp $
    "c7050003e0fe00450c00"  # mov dword [0xfee00300], 0xc4500  the local APIC: INIT to all but this one
    "b900000100e2fe"  #       mov ecx, 0x00010000; loop $
    "c7050003e0fe08460c00"  # mov dword [0xfee00300], 0xc4608  start at 0x8000
)
_SPIN = bytes.fromhex("ebfe")
"""jmp $"""
_NAP = (
    "fb"  #         sti
    "8b1e6c04"  #   again: mov bx, [0x46c]                     the BIOS clock
    "a16c04"  #     busy:  mov ax, [0x46c]
    "29d8"  #              sub ax, bx
    "3d{busy}"  #          cmp ax, BUSY
    "72f6"  #              jb busy
    "8b1e6c04"  #          mov bx, [0x46c]
    "f4"  #         idle:  hlt
    "a16c04"  #            mov ax, [0x46c]
    "29d8"  #              sub ax, bx
    "3d{idle}"  #          cmp ax, IDLE
    "72f5"  #              jb idle
    "ebe1"  #              jmp again
)
_GDT = bytes(8) + bytes.fromhex("ffff0000009acf00 ffff00000092cf00")
"""Nothing; code, and data, from 0 to 4 GiB."""


def image(vcpus: int, nap: tuple[int, int] | None) -> bytes:
    """A disk that keeps all vCPUs busy; with `nap` the only one, for milliseconds of work and of sleep in turn."""
    assert vcpus == 1 or nap is None, "only one vCPU can nap"
    code = _BEGIN + (_start_others() if vcpus > 1 else b"") + (_napping(*nap) if nap else _SPIN)
    code = code.ljust(SECTOR - 2 - len(_GDT) - 6, b"\0")
    code += _GDT + (len(_GDT) - 1).to_bytes(2, "little") + (_AT + len(code)).to_bytes(4, "little")
    return (code + b"\x55\xaa").ljust(DISK, b"\0")


def _start_others() -> bytes:
    gdtr, following = _AT + SECTOR - 2 - 6, _AT + len(_BEGIN) + 18
    return bytes.fromhex(_OTHERS.format(gdtr=_word(gdtr), next=_word(following)))


def _napping(busy: int, idle: int) -> bytes:
    return bytes.fromhex(_NAP.format(busy=_word(round(busy / TICK_MS)), idle=_word(round(idle / TICK_MS))))


def _word(value: int) -> str:
    return value.to_bytes(2, "little").hex()
