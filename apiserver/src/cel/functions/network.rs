//! URLs, addresses and networks (Kubernetes' `url`, `ip` and `cidr` libraries).

use std::any::Any;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use http::Uri;
use ipnet::IpNet;

use super::super::error::EvalError;
use super::super::eval::Scope;
use super::super::types::Type;
use super::super::value::{Key, Opaque, Text, Value};
use super::{Row, opaque, text};
use crate::request::percent_decode;

type Result<'a> = std::result::Result<Value<'a>, EvalError>;

/// Names of the types.
pub const URL: &str = "kubernetes.URL";
pub const IP: &str = "net.IP";
pub const CIDR: &str = "net.CIDR";

const URL_PART: &[&str] = &["url.() -> string"];
const IP_TEST: &[&str] = &["ip.() -> bool"];

/// The functions.
pub const ROWS: &[Row] = &[
    ("url", &["(string) -> url"], url),
    ("isURL", &["(string) -> bool"], is_url),
    ("getScheme", URL_PART, scheme),
    ("getHost", URL_PART, host),
    ("getHostname", URL_PART, hostname),
    ("getPort", URL_PART, port),
    ("getEscapedPath", URL_PART, path),
    ("getQuery", &["url.() -> map(string, list(string))"], query),
    ("ip", &["(string) -> ip", "cidr.() -> ip"], ip),
    ("isIP", &["(string) -> bool"], is_ip),
    ("ip.isCanonical", &["(string) -> bool"], is_canonical),
    ("family", &["ip.() -> int"], family),
    ("isUnspecified", IP_TEST, is_unspecified),
    ("isLoopback", IP_TEST, is_loopback),
    ("isLinkLocalMulticast", IP_TEST, is_link_local_multicast),
    ("isLinkLocalUnicast", IP_TEST, is_link_local_unicast),
    ("isGlobalUnicast", IP_TEST, is_global_unicast),
    ("cidr", &["(string) -> cidr"], cidr),
    ("isCIDR", &["(string) -> bool"], is_cidr),
    (
        "containsIP",
        &["cidr.(string) -> bool", "cidr.(ip) -> bool"],
        contains_ip,
    ),
    (
        "containsCIDR",
        &["cidr.(string) -> bool", "cidr.(cidr) -> bool"],
        contains_cidr,
    ),
    ("prefixLength", &["cidr.() -> int"], prefix_length),
    ("masked", &["cidr.() -> cidr"], masked),
];

macro_rules! opaque_type {
    ($type:ty, $name:expr) => {
        impl Opaque for $type {
            fn type_of(&self) -> Type {
                Type::Opaque($name)
            }

            fn equals(&self, other: &dyn Opaque) -> bool {
                other.as_any().downcast_ref::<$type>() == Some(self)
            }

            fn as_any(&self) -> &dyn Any {
                self
            }
        }
    };
}

pub(super) use opaque_type;

/// An address.
#[derive(Debug, PartialEq)]
pub struct Ip(pub IpAddr);

/// A network.
#[derive(Debug, PartialEq)]
pub struct Cidr(pub IpNet);

#[derive(Debug, PartialEq)]
struct Url {
    scheme: String,
    host: String,
    path: String,
    query: String,
}

opaque_type!(Ip, IP);
opaque_type!(Cidr, CIDR);
opaque_type!(Url, URL);

/// Go's `url.ParseRequestURI`: absolute, or a path.
fn parse_url(given: &str) -> std::result::Result<Url, String> {
    let fail = |why: &str| Err(format!("parse {given:?}: {why}"));
    if given.is_empty() {
        return fail("empty url");
    }
    if given.chars().any(|c| c.is_ascii_control()) {
        return fail("net/url: invalid control character in URL");
    }
    let (before_fragment, _) = given.split_once('#').unwrap_or((given, ""));
    let (before_query, query) = before_fragment
        .split_once('?')
        .unwrap_or((before_fragment, ""));
    let (scheme, rest) = match before_query.find(':') {
        Some(at)
            if before_query[..at].starts_with(|c: char| c.is_ascii_alphabetic())
                && before_query[..at]
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.')) =>
        {
            (
                before_query[..at].to_ascii_lowercase(),
                &before_query[at + 1..],
            )
        }
        _ => (String::new(), before_query),
    };
    if scheme.is_empty() && !rest.starts_with('/') {
        return fail("invalid URI for request");
    }
    if !scheme.is_empty() && !rest.starts_with('/') {
        return fail("invalid URI for request");
    }
    let (authority, path) = match rest.strip_prefix("//") {
        Some(rest) if !scheme.is_empty() => match rest.find('/') {
            Some(slash) => (&rest[..slash], &rest[slash..]),
            None => (rest, ""),
        },
        _ => ("", rest),
    };
    let host = authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host);
    if host.contains(' ') {
        return fail("invalid character \" \" in host name");
    }
    if !host.is_empty()
        && Uri::builder()
            .scheme("http")
            .authority(host)
            .path_and_query("/")
            .build()
            .is_err()
    {
        return fail("invalid host");
    }
    let mut escapes = path.split('%').skip(1);
    if escapes.any(|part| {
        part.len() < 2
            || !part.is_char_boundary(2)
            || !part[..2].chars().all(|c| c.is_ascii_hexdigit())
    }) {
        return fail("invalid URL escape");
    }
    Ok(Url {
        scheme,
        host: host.to_string(),
        path: path.to_string(),
        query: query.to_string(),
    })
}

fn url<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let given = text(args.first().ok_or_else(EvalError::no_such_overload)?)?;
    scope.charge_text(given.len(), 10)?;
    parse_url(given).map(Value::opaque).map_err(|why| {
        EvalError::message(format!(
            "URL parse error during conversion from string: {why}"
        ))
    })
}

fn is_url<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let given = text(args.first().ok_or_else(EvalError::no_such_overload)?)?;
    scope.charge_text(given.len(), 10)?;
    Ok(Value::Bool(parse_url(given).is_ok()))
}

fn only<'v, T: 'static>(args: &'v [Value<'_>]) -> std::result::Result<&'v T, EvalError> {
    opaque(args.first().ok_or_else(EvalError::no_such_overload)?)
}

fn scheme<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    Ok(Value::text(only::<Url>(args)?.scheme.clone()))
}

fn host<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    Ok(Value::text(only::<Url>(args)?.host.clone()))
}

/// Host and port apart; brackets belong to neither.
fn split_host(host: &str) -> (&str, &str) {
    if let Some((inside, after)) = host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return (inside, after.strip_prefix(':').unwrap_or_default());
    }
    host.rsplit_once(':').unwrap_or((host, ""))
}

fn hostname<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    Ok(Value::text(split_host(&only::<Url>(args)?.host).0))
}

fn port<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    Ok(Value::text(split_host(&only::<Url>(args)?.host).1))
}

fn path<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let path = &only::<Url>(args)?.path;
    let mut escaped = String::with_capacity(path.len());
    for byte in path.bytes() {
        let plain = byte.is_ascii_alphanumeric() || b"-_.~!$&'()*+,;=:@/%[]".contains(&byte);
        match plain {
            true => escaped.push(char::from(byte)),
            false => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    Ok(Value::text(escaped))
}

fn query<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let mut found: BTreeMap<String, Vec<Value<'a>>> = BTreeMap::new();
    for pair in only::<Url>(args)?
        .query
        .split('&')
        .filter(|p| !p.is_empty())
    {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        found
            .entry(percent_decode(key, true))
            .or_default()
            .push(Value::text(percent_decode(value, true)));
    }
    let entries = found
        .into_iter()
        .map(|(key, values)| (Key::String(Text::from(key)), Value::list(values)));
    Ok(Value::Map(Arc::new(entries.collect())))
}

/// Go's `netip.ParseAddr`, without zones and mapped addresses.
fn parse_ip(given: &str) -> std::result::Result<IpAddr, String> {
    if given.contains(':') && given.contains('%') {
        return Err(format!(
            "IP address {given:?} with zone value is not allowed"
        ));
    }
    let address: IpAddr = given.parse().map_err(|_| {
        format!(
            "IP Address {given:?} parse error during conversion from string: ParseAddr({given:?}): unable to parse IP"
        )
    })?;
    if matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()) {
        return Err(format!("IPv4-mapped IPv6 address {given:?} is not allowed"));
    }
    Ok(address)
}

fn ip<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    match args {
        [Value::String(given)] => parse_ip(given)
            .map(|address| Value::opaque(Ip(address)))
            .map_err(EvalError::Message),
        _ => Ok(Value::opaque(Ip(only::<Cidr>(args)?.0.addr()))),
    }
}

fn is_ip<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let given = text(args.first().ok_or_else(EvalError::no_such_overload)?)?;
    Ok(Value::Bool(parse_ip(given).is_ok()))
}

fn is_canonical<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let given = text(args.first().ok_or_else(EvalError::no_such_overload)?)?;
    let address = parse_ip(given).map_err(EvalError::Message)?;
    Ok(Value::Bool(address.to_string() == given))
}

fn family<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    Ok(Value::Int(match only::<Ip>(args)?.0 {
        IpAddr::V4(_) => 4,
        IpAddr::V6(_) => 6,
    }))
}

fn is_unspecified<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    Ok(Value::Bool(only::<Ip>(args)?.0.is_unspecified()))
}

fn is_loopback<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    Ok(Value::Bool(only::<Ip>(args)?.0.is_loopback()))
}

fn is_link_local_multicast<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    Ok(Value::Bool(match only::<Ip>(args)?.0 {
        IpAddr::V4(v4) => v4.octets()[..3] == [224, 0, 0],
        IpAddr::V6(v6) => v6.segments()[0] & 0xff0f == 0xff02,
    }))
}

fn link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

fn is_link_local_unicast<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    Ok(Value::Bool(link_local(only::<Ip>(args)?.0)))
}

fn is_global_unicast<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let address = only::<Ip>(args)?.0;
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    Ok(Value::Bool(
        !(broadcast
            || address.is_unspecified()
            || address.is_loopback()
            || address.is_multicast()
            || link_local(address)),
    ))
}

fn parse_cidr(given: &str) -> std::result::Result<IpNet, String> {
    let network: IpNet = given.parse().map_err(|_| {
        format!(
            "network address parse error during conversion from string: netip.ParsePrefix({given:?}): no '/'"
        )
    })?;
    if matches!(network.addr(), IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()) {
        return Err(format!("IPv4-mapped IPv6 address {given:?} is not allowed"));
    }
    Ok(network)
}

fn cidr<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let given = text(args.first().ok_or_else(EvalError::no_such_overload)?)?;
    parse_cidr(given)
        .map(|network| Value::opaque(Cidr(network)))
        .map_err(EvalError::Message)
}

fn is_cidr<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let given = text(args.first().ok_or_else(EvalError::no_such_overload)?)?;
    Ok(Value::Bool(parse_cidr(given).is_ok()))
}

fn contains_ip<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let network = only::<Cidr>(args)?.0;
    let address = match args.get(1) {
        Some(Value::String(given)) => parse_ip(given).map_err(EvalError::Message)?,
        Some(other) => opaque::<Ip>(other)?.0,
        None => return Err(EvalError::no_such_overload()),
    };
    Ok(Value::Bool(network.contains(&address)))
}

fn contains_cidr<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let network = only::<Cidr>(args)?.0;
    let inner = match args.get(1) {
        Some(Value::String(given)) => parse_cidr(given).map_err(EvalError::Message)?,
        Some(other) => opaque::<Cidr>(other)?.0,
        None => return Err(EvalError::no_such_overload()),
    };
    Ok(Value::Bool(network.contains(&inner)))
}

fn prefix_length<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    Ok(Value::Int(only::<Cidr>(args)?.0.prefix_len().into()))
}

fn masked<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    Ok(Value::opaque(Cidr(only::<Cidr>(args)?.0.trunc())))
}
