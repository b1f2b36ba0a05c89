"""From which size on a call is shared between torch's threads."""

# Forking and joining the thread pool pays above about 150 us of work (2 us awake, 10 us asleep, each way).
_SERIAL_S = 150e-6
_MULTIPLY_ADDS_PER_S = 30e9
_READ_BYTES_PER_S = 20e9


def worth_sharing(multiply_adds: float, weight_bytes: float) -> bool:
    """Whether threads pay for a call of so many float multiply-adds (or their equal) over so many bytes of weights."""
    return multiply_adds / _MULTIPLY_ADDS_PER_S + weight_bytes / _READ_BYTES_PER_S > _SERIAL_S
