//! What happens to a frame once its destination is known: direct routing, NAT, tunnel, and the ICMP that answers
//! or follows it. Pure functions on bytes; who is sent where is the caller's.
