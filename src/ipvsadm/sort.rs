//! The order of listings: ipvsadm's own, kept with its peculiarities.
//!
//! It compares 32-bit words by the sign of their wrapped difference, so an address comes after one that is more than
//! 2^31 above it (192.168.0.1 before 10.0.0.1, and fwmark 4294967295 first of all). That is no total order, so the
//! result depends on the algorithm as well: the merge sort of the C library.

use std::net::IpAddr;

use crate::control::protocol::{DestinationListing, ServiceListing};
use crate::service::{DestinationKey, ServiceKey};

/// Sorts services, and the destinations of each.
pub fn sort(services: Vec<ServiceListing>) -> Vec<ServiceListing> {
    let mut services = merge_sort(services, &|a, b| compare_services(&a.service.key, &b.service.key));
    for service in &mut services {
        let destinations = std::mem::take(&mut service.destinations);
        let by_key = |a: &DestinationListing, b: &DestinationListing| {
            compare_destinations(&a.destination.key, &b.destination.key)
        };
        service.destinations = merge_sort(destinations, &by_key);
    }
    services
}

/// The daemon's order, services with a mark behind the others, as the kernel lists its two tables.
pub fn marks_last(mut services: Vec<ServiceListing>) -> Vec<ServiceListing> {
    services.sort_by_key(|listing| matches!(listing.service.key, ServiceKey::FwMark { .. }));
    services
}

/// Mark, family, protocol, address words, port.
fn compare_services(a: &ServiceKey, b: &ServiceKey) -> i32 {
    let ((mark_a, words_a), (mark_b, words_b)) = (service_words(a), service_words(b));
    let mark = mark_a.wrapping_sub(mark_b) as i32;
    if mark != 0 {
        mark
    } else {
        compare_words(&words_a, &words_b)
    }
}

fn service_words(key: &ServiceKey) -> (u32, [u32; 7]) {
    let family = key.family() as u32;
    match *key {
        ServiceKey::FwMark { mark, .. } => (mark, [family, 0, 0, 0, 0, 0, 0]),
        ServiceKey::Address {
            protocol,
            address,
            port,
        } => {
            let [a, b, c, d] = words(address);
            (0, [family, protocol.number().0.into(), a, b, c, d, port.into()])
        }
    }
}

/// Address words and port; of an IPv4 destination only the first word counts, also against an IPv6 one.
fn compare_destinations(a: &DestinationKey, b: &DestinationKey) -> i32 {
    let (words_a, words_b) = (words(a.address), words(b.address));
    let count = if a.address.is_ipv6() { 4 } else { 1 };
    let address = compare_words(&words_a[..count], &words_b[..count]);
    if address != 0 {
        address
    } else {
        i32::from(a.port) - i32::from(b.port)
    }
}

fn words(address: IpAddr) -> [u32; 4] {
    match address {
        IpAddr::V4(address) => [address.to_bits(), 0, 0, 0],
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            [
                (bits >> 96) as u32,
                (bits >> 64) as u32,
                (bits >> 32) as u32,
                bits as u32,
            ]
        }
    }
}

fn compare_words(a: &[u32], b: &[u32]) -> i32 {
    let differences = a.iter().zip(b).map(|(a, b)| a.wrapping_sub(*b) as i32);
    differences.into_iter().find(|difference| *difference != 0).unwrap_or(0)
}

/// Top-down merge sort with the lower half first, as glibc's `qsort`.
fn merge_sort<T>(mut items: Vec<T>, compare: &dyn Fn(&T, &T) -> i32) -> Vec<T> {
    if items.len() <= 1 {
        return items;
    }
    let upper = items.split_off(items.len() / 2);
    let mut lower = merge_sort(items, compare).into_iter().peekable();
    let mut upper = merge_sort(upper, compare).into_iter().peekable();
    let mut merged = Vec::with_capacity(lower.len() + upper.len());
    while let (Some(a), Some(b)) = (lower.peek(), upper.peek()) {
        merged.extend(if compare(a, b) <= 0 { lower.next() } else { upper.next() });
    }
    merged.extend(lower);
    merged.extend(upper);
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::TransportProtocol;

    fn destinations(addresses: &[&str]) -> Vec<String> {
        let keys = addresses.iter().map(|address| DestinationKey {
            address: address.parse().unwrap(),
            port: 80,
        });
        let sorted = merge_sort(keys.collect(), &compare_destinations);
        sorted.iter().map(|key| key.address.to_string()).collect()
    }

    #[test]
    fn destinations_as_recorded() {
        // Recorded from ipvsadm 1.31 with these servers in this order.
        assert_eq!(
            destinations(&["10.1.0.1", "192.168.0.1", "172.16.0.1", "127.0.0.1"]),
            ["127.0.0.1", "172.16.0.1", "192.168.0.1", "10.1.0.1"]
        );
        assert_eq!(
            destinations(&["2001:db8:1::9", "127.0.0.1", "10.1.0.2", "10.1.0.1"]),
            ["10.1.0.1", "10.1.0.2", "2001:db8:1::9", "127.0.0.1"]
        );
    }

    #[test]
    fn services_go_by_mark_family_protocol_address_port() {
        let address = |protocol, address: &str, port| ServiceKey::Address {
            protocol,
            address: address.parse().unwrap(),
            port,
        };
        let mark = |mark, ipv6| ServiceKey::FwMark { mark, ipv6 };
        use TransportProtocol::{Sctp, Tcp, Udp};
        let expected = vec![
            mark(u32::MAX, false),
            address(Tcp, "10.0.0.1", 70),
            address(Tcp, "10.0.0.1", 443),
            address(Tcp, "10.0.0.2", 80),
            address(Udp, "10.0.0.1", 53),
            address(Sctp, "10.0.0.1", 9899),
            address(Tcp, "::1", 80),
            address(Tcp, "2001:db8::1", 80),
            address(Udp, "2001:db8::1", 53),
            mark(1, false),
            mark(1, true),
            mark(2, false),
        ];
        for rotation in 0..expected.len() {
            let mut keys = expected.clone();
            keys.rotate_left(rotation);
            assert_eq!(merge_sort(keys, &compare_services), expected, "rotated by {rotation}");
        }
    }
}
