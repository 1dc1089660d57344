//! Writing into a parsed frame: addresses, ports, TTL, link addresses, each with its checksum.
