"""Which names and addresses are those of loopback."""

from ipaddress import ip_address

_NAME = "localhost"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`; False where that is not certain.

    Short forms as `127.1`, which some programs understand, are not taken for addresses.
    """
    plain = host.removeprefix("[").removesuffix("]")
    if plain.lower() == _NAME:
        return True
    try:
        return ip_address(plain).is_loopback
    except ValueError:
        return False
