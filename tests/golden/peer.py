"""The other end of the golden tests: scapy's IPsec layer behind JSON lines.

One request a line on standard input, one answer a line on standard output; bytes are hexadecimal. The first line says
`ready`, or `missing` and why. A request has `op`, and:

- `inner`: builds an IP packet from `source`, `destination`, `transport`, `payload_len`, `tos`, `hop_limit`, `df`.
  Answers `packet`, and `forwarded`: the same one hop later.
- `seal`: seals `inner` with `sa` and `iv`. Answers `packet`, the outer IP packet.
- `forge`: likewise, but what is encrypted is `plain`, ESP trailer included, whatever it holds.
- `open`: opens the outer IP packet `packet` with `sa`. Answers `inner`, or `refused` where the ICV is wrong.

`sa` has `spi`, `key` (AES key, then salt), `esn`, `seq` (all 64 bits), `outer` (`source`, `destination`, `tos`,
`hop_limit`, `df`, `id`) and `udp` (two ports or null).
"""

import json
import sys

try:
    from scapy.config import conf
    from scapy.layers.inet import ICMP, IP, TCP, UDP
    from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
    from scapy.layers.ipsec import (
        CRYPT_ALGOS,
        ESP,
        IPSecIntegrityError,
        SecurityAssociation,
        _ESPPlain,
    )
    from scapy.packet import Raw, raw

    MISSING = None if conf.crypto_valid else "scapy finds no python3-cryptography"
except ImportError as error:
    MISSING = str(error)

# What no protocol of the IP family is: an IP packet without payload has to name something.
EXPERIMENT = 253


def ip_class(packet):
    """The class of the IP packet that these bytes begin."""
    return IPv6 if packet[0] >> 4 == 6 else IP


def ip_header(fields):
    """An IP header without length, checksum and protocol, which scapy fills in."""
    if ":" in fields["source"]:
        return IPv6(
            src=fields["source"],
            dst=fields["destination"],
            tc=fields["tos"],
            hlim=fields["hop_limit"],
        )
    return IP(
        src=fields["source"],
        dst=fields["destination"],
        tos=fields["tos"],
        ttl=fields["hop_limit"],
        flags="DF" if fields["df"] else 0,
        id=fields.get("id", 0x5151),
    )


def payload(transport, length, is_v6):
    """A transport header, and `length` bytes of which none is like the one before."""
    data = bytes((at * 7 + length) & 0xFF for at in range(length))
    if transport == "udp":
        return UDP(sport=1234, dport=5678) / data
    if transport == "tcp":
        return TCP(sport=1234, dport=5678, seq=0x01020304, flags="PA") / data
    if transport == "icmp" and is_v6:
        return ICMPv6EchoRequest(id=7, seq=9, data=data)
    if transport == "icmp":
        return ICMP(id=7, seq=9) / data
    return Raw(data)


def inner(request):
    """See the head of this file."""

    def build(hop_limit):
        header = ip_header({**request, "hop_limit": hop_limit})
        is_v6 = isinstance(header, IPv6)
        if request["transport"] == "none":
            setattr(header, "nh" if is_v6 else "proto", EXPERIMENT)
        return raw(header / payload(request["transport"], request["payload_len"], is_v6))

    hop_limit = request["hop_limit"]
    return {"packet": build(hop_limit).hex(), "forwarded": build(hop_limit - 1).hex()}


def association(sa):
    """scapy's SA for ours. Its `esn` is the high half of the sequence number, which it authenticates between SPI and low
    half where `esn_en` says so: just what RFC 4106 section 5 asks, so nothing here has to be computed without scapy."""
    return SecurityAssociation(
        ESP,
        spi=sa["spi"],
        seq_num=sa["seq"] & 0xFFFFFFFF,
        crypt_algo="AES-GCM",
        crypt_key=bytes.fromhex(sa["key"]),
        tunnel_header=ip_header(sa["outer"]),
        nat_t_header=UDP(sport=sa["udp"][0], dport=sa["udp"][1]) if sa["udp"] else None,
        esn_en=sa["esn"],
        esn=sa["seq"] >> 32 if sa["esn"] else 0,
    )


def finish(packet):
    """The bytes of an outer packet. scapy 2.5 leaves 8 as the UDP length over IPv4, as if nothing followed, and no UDP
    checksum over IPv6, where RFC 8200 section 8.1 wants one: both are left to its builder here."""
    if UDP in packet:
        del packet[UDP].len
        if isinstance(packet, IPv6):
            del packet[UDP].chksum
    return raw(packet).hex()


def seal(request):
    """See the head of this file."""
    packet = bytes.fromhex(request["inner"])
    sealed = association(request["sa"]).encrypt(
        ip_class(packet)(packet),
        seq_num=request["sa"]["seq"] & 0xFFFFFFFF,
        iv=bytes.fromhex(request["iv"]),
    )
    return {"packet": finish(sealed)}


def forge(request):
    """See the head of this file."""
    sa = association(request["sa"])
    plain = bytes.fromhex(request["plain"])
    esp = _ESPPlain(
        spi=sa.spi,
        seq=sa.seq_num,
        iv=bytes.fromhex(request["iv"]),
        data=Raw(plain[:-2]),
        padlen=plain[-2],
        nh=plain[-1],
    )
    cipher = CRYPT_ALGOS["AES-GCM"]
    sealed = cipher.encrypt(sa, esp, sa.crypt_key, esn_en=sa.esn_en, esn=sa.esn)
    header = sa.tunnel_header
    if sa.nat_t_header:
        header /= sa.nat_t_header
        if isinstance(sa.tunnel_header, IP):
            header[UDP].chksum = 0
    return {"packet": raw(header / sealed).hex()}


def open_(request):
    """See the head of this file."""
    packet = bytes.fromhex(request["packet"])
    try:
        opened = association(request["sa"]).decrypt(ip_class(packet)(packet))
    except IPSecIntegrityError:
        return {"refused": "ICV"}
    return {"inner": raw(opened).hex()}


OPERATIONS = {"inner": inner, "seal": seal, "forge": forge, "open": open_}


def main():
    """Answers until standard input ends."""
    if MISSING is not None:
        print(json.dumps({"missing": MISSING}), flush=True)
        return
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = OPERATIONS[request["op"]](request)
        except Exception as error:  # The test that asked shall fail and say why; the others go on.
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
