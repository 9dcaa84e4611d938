"""Which of the sockets that share a port (SO_REUSEPORT) get the connections that come from now on.

A socket that is closed resets the connections that its kernel has begun and nobody has accepted. So those that leave
first send all new ones to those that stay, and close when the last of theirs has been accepted.
"""

import ctypes
import errno
import logging
import socket
import struct

# linux/include/uapi/asm-generic/socket.h; Python has no names for them.
SO_ATTACH_REUSEPORT_CBPF = 51
SO_DETACH_REUSEPORT_BPF = 68
# linux/include/uapi/linux/filter.h and bpf_common.h: load a word of the packet's surroundings, and calculate with it.
_LOAD, _MODULO, _ADD, _RETURN = 0x20, 0x94, 0x04, 0x16
_RANDOM = 0xFFFFF000 + 56  # SKF_AD_OFF + SKF_AD_RANDOM
_NOTHING_ATTACHED = errno.ENOENT

log = logging.getLogger("ray.serve")


def steer(listener: socket.socket, first: int, count: int) -> None:
    """Send connections at random to `count` of the sockets at the port, from number `first` in the order they listen.

    The kernel chooses as it always does where there are fewer, and where it knows no such programs (socket(7)).
    """
    program = ((_LOAD, _RANDOM), (_MODULO, count), (_ADD, first), (_RETURN, 0))
    code = b"".join(struct.pack("=HBBI", operation, 0, 0, operand) for operation, operand in program)
    kept = ctypes.create_string_buffer(code)  # as long as the kernel reads it
    try:
        found = struct.pack("@HP", len(program), ctypes.addressof(kept))
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, found)
    except OSError as error:
        log.warning("connections that begin while this ingress leaves may be reset: %s", error)


def steer_no_more(listener: socket.socket) -> None:
    """Let the kernel choose among all of them again."""
    try:
        listener.setsockopt(socket.SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, 0)
    except OSError as error:
        if error.errno != _NOTHING_ATTACHED:  # another one that leaves was first
            log.warning("new connections may be spread unevenly: %s", error)
