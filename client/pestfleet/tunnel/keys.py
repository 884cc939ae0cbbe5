"""The keys of one session's tunnel: made for it, known to its two ends, thrown away with it."""

from __future__ import annotations

from dataclasses import dataclass, field

LISTEN_PORT = 4004
COMMENT = "pestfleet-tunnel"


@dataclass(frozen=True, slots=True)
class TunnelKeys:
    """Two pairs of Ed25519 keys in OpenSSH's formats, each text ending with a line end.

    The server holds `host_key` and knows `user_public`; the user's end holds `user_key` and
    knows `host_public`. A public key is one line: type, key and comment.
    """

    host_key: str = field(repr=False)
    host_public: str
    user_key: str = field(repr=False)
    user_public: str

    def server_files(self, *, listen: int = LISTEN_PORT) -> dict[str, str]:
        """File name -> content, for the container of the tunnel.

        `listen`: the one port that the user's end may listen on there.
        """
        return {
            "host_key": self.host_key,
            "authorized_keys": write_authorized_key(self.user_public, listen=listen),
        }

    def home_files(self) -> dict[str, str]:
        """File name -> content, for the machine that opens the tunnel."""
        return {"tunnel_key": self.user_key, "host_key.pub": self.host_public}


def make_tunnel_keys() -> TunnelKeys:
    """New keys, from the operating system's random numbers."""
    host_key, host_public = make_pair()
    user_key, user_public = make_pair()
    return TunnelKeys(
        host_key=host_key, host_public=host_public, user_key=user_key, user_public=user_public
    )


def write_authorized_key(public: str, *, listen: int = LISTEN_PORT) -> str:
    """The line of `authorized_keys` for a public key: it may listen on one port, and no more.

    See sshd(8), AUTHORIZED_KEYS FILE FORMAT. `restrict` refuses all that there is and will be;
    `permitlisten` without a host means every address. permitopen, which `port-forwarding` would
    leave free, is refused by the server's configuration.
    """
    rights = f'restrict,port-forwarding,permitlisten="{listen}",command="/bin/false"'
    return f"{rights} {public.strip()}\n"


def make_pair(comment: str = COMMENT) -> tuple[str, str]:
    """A new private and public key; `comment` goes with the public one."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return private.decode("ascii"), f"{public.decode('ascii')} {comment}\n"
