//! IP addresses and CIDR ranges in API fields (upstream `k8s.io/apimachinery/pkg/util/validation/ip.go`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::status::field::{FieldError, Path};
use crate::text;

/// Reads an address; like Go's older parser it takes leading zeros in IPv4 octets as decimal
/// (upstream `netutils.ParseIPSloppy`).
pub fn parse_ip_sloppy(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        return text
            .parse::<Ipv6Addr>()
            .ok()
            .map(|ip| match ip.to_ipv4_mapped() {
                Some(v4) => IpAddr::V4(v4),
                None => IpAddr::V6(ip),
            });
    }
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let digits = part.trim_start_matches('0');
        *octet = if digits.is_empty() {
            0
        } else {
            digits.parse().ok()?
        };
    }
    parts
        .next()
        .is_none()
        .then(|| IpAddr::V4(Ipv4Addr::from(octets)))
}

fn parse_prefix_sloppy(text: &str) -> Option<(IpAddr, u8)> {
    let (address, bits) = text.split_once('/')?;
    let ip = parse_ip_sloppy(address)?;
    if bits.is_empty() || !bits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let bits: u8 = bits.parse().ok()?;
    let max = if address.contains(':') { 128 } else { 32 };
    (bits <= max).then_some((ip, bits))
}

fn check_ip(path: &Path, text: &str) -> Result<IpAddr, FieldError> {
    let ip = parse_ip_sloppy(text).ok_or_else(|| {
        FieldError::invalid(
            path,
            text,
            "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        )
    })?;
    match text.parse::<IpAddr>() {
        Err(_) => Err(FieldError::invalid(path, text, "must not have leading 0s")),
        Ok(IpAddr::V6(v6)) if v6.to_ipv4_mapped().is_some() => Err(FieldError::invalid(
            path,
            text,
            "must not be an IPv4-mapped IPv6 address",
        )),
        Ok(_) => Ok(ip),
    }
}

/// An address in a field that predates the demand for the canonical form (upstream `IsValidIPForLegacyField` with
/// strict validation); values in `old` pass as they are.
pub fn valid_ip_legacy(path: &Path, text: &str, old: &[&str]) -> Option<FieldError> {
    if old.contains(&text) {
        return None;
    }
    check_ip(path, text).err()
}

/// An address in canonical form (upstream `IsValidIP`).
pub fn valid_ip(path: &Path, text: &str) -> Option<FieldError> {
    match check_ip(path, text) {
        Err(error) => Some(error),
        Ok(ip) if ip.to_string() != text => Some(FieldError::invalid(
            path,
            text,
            format!(
                "must be in canonical form ({})",
                text::quote(&ip.to_string())
            ),
        )),
        Ok(_) => None,
    }
}

fn check_cidr(path: &Path, text: &str) -> Result<(IpAddr, u8), FieldError> {
    let invalid = |detail: &str| FieldError::invalid(path, text, detail);
    let (_, bits) = parse_prefix_sloppy(text).ok_or_else(|| {
        invalid("must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)")
    })?;
    let (address, bits_text) = text.split_once('/').unwrap_or((text, ""));
    let strict: Option<IpAddr> = address.parse().ok();
    let Some(ip) = strict.filter(|_| bits_text == bits.to_string()) else {
        return Err(invalid("must not have leading 0s in IP or prefix length"));
    };
    match ip {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            Err(invalid("must not have an IPv4-mapped IPv6 address"))
        }
        ip if masked(ip, bits) != ip => {
            Err(invalid("must not have bits set beyond the prefix length"))
        }
        ip => Ok((ip, bits)),
    }
}

fn masked(ip: IpAddr, bits: u8) -> IpAddr {
    match ip {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from(u32::from(v4) & mask))
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from(u128::from(v6) & mask))
        }
    }
}

/// A range in a field that predates the demand for the canonical form (upstream `IsValidCIDRForLegacyField` with
/// strict validation); values in `old` pass as they are.
pub fn valid_cidr_legacy(path: &Path, text: &str, old: &[&str]) -> Option<FieldError> {
    if old.contains(&text) {
        return None;
    }
    check_cidr(path, text).err()
}

/// A range in canonical form (upstream `IsValidCIDR`).
pub fn valid_cidr(path: &Path, text: &str) -> Option<FieldError> {
    match check_cidr(path, text) {
        Err(error) => Some(error),
        Ok((ip, bits)) if format!("{ip}/{bits}") != text => Some(FieldError::invalid(
            path,
            text,
            format!(
                "must be in canonical form ({})",
                text::quote(&format!("{ip}/{bits}"))
            ),
        )),
        Ok(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_ranges() {
        let path = Path::new("ip");
        for (text, want) in [
            ("10.0.0.1", None),
            ("fe80::1", None),
            (
                "FE80::1",
                Some(r#"ip: Invalid value: "FE80::1": must be in canonical form ("fe80::1")"#),
            ),
            (
                "010.0.0.1",
                Some(r#"ip: Invalid value: "010.0.0.1": must not have leading 0s"#),
            ),
            (
                "::ffff:1.2.3.4",
                Some(
                    r#"ip: Invalid value: "::ffff:1.2.3.4": must not be an IPv4-mapped IPv6 address"#,
                ),
            ),
            (
                "1.2.3",
                Some(
                    r#"ip: Invalid value: "1.2.3": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"#,
                ),
            ),
        ] {
            assert_eq!(
                valid_ip(&path, text).map(|e| e.to_string()).as_deref(),
                want
            );
        }
        for (text, want) in [
            ("10.0.0.0/8", None),
            ("0.0.0.0/0", None),
            ("::/0", None),
            (
                "10.0.0.1/8",
                Some("must not have bits set beyond the prefix length"),
            ),
            (
                "10.0.0.0/08",
                Some("must not have leading 0s in IP or prefix length"),
            ),
            (
                "10.0.0.0/33",
                Some("must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"),
            ),
        ] {
            assert_eq!(
                valid_cidr(&path, text).map(|e| e.detail).as_deref(),
                want,
                "{text}"
            );
        }
    }
}
