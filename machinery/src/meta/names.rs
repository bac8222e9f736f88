//! The rules for names (upstream `k8s.io/apimachinery/pkg/util/validation` and `pkg/api/validate/content`).
//! Each function answers the broken rules in upstream's words; none means valid.

/// The longest DNS label.
pub const LABEL_MAX: usize = 63;
/// The longest DNS subdomain.
pub const SUBDOMAIN_MAX: usize = 253;

const LABEL_FMT: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const SUBDOMAIN_FMT: &str = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const LABEL_KEY_FMT: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";

/// "Too long" in characters, as `pkg/util/validation` says it.
pub fn max_len_error(max: usize) -> String {
    format!("must be no more than {max} characters")
}

/// "Too long" in bytes, as `pkg/api/validate/content` says it.
fn max_bytes_error(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

/// A value outside a pattern, with examples.
pub fn regex_error(message: &str, pattern: &str, examples: &[&str]) -> String {
    let examples: Vec<String> = examples.iter().map(|e| format!("'{e}', ")).collect();
    match examples.as_slice() {
        [] => format!("{message} (regex used for validation is '{pattern}')"),
        _ => format!(
            "{message} (e.g. {}regex used for validation is '{pattern}')",
            examples.join(" or ")
        ),
    }
}

/// A number outside a range.
pub fn inclusive_range_error(low: i64, high: i64) -> String {
    format!("must be between {low} and {high}, inclusive")
}

fn lower_alnum(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

/// Whether `text` begins with `first`, ends with `last` and has only `inner` in between.
fn shaped(
    text: &str,
    first: impl Fn(u8) -> bool,
    inner: impl Fn(u8) -> bool,
    last: impl Fn(u8) -> bool,
) -> bool {
    match text.as_bytes() {
        [] => false,
        [one] => first(*one),
        [start, middle @ .., end] => {
            first(*start) && middle.iter().all(|b| inner(*b)) && last(*end)
        }
    }
}

fn label_shaped(text: &str) -> bool {
    shaped(
        text,
        lower_alnum,
        |b| lower_alnum(b) || b == b'-',
        lower_alnum,
    )
}

fn subdomain_shaped(text: &str) -> bool {
    text.split('.').all(label_shaped)
}

fn label_key_shaped(text: &str) -> bool {
    shaped(
        text,
        |b| b.is_ascii_alphanumeric(),
        |b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'),
        |b| b.is_ascii_alphanumeric(),
    )
}

/// A DNS label of RFC 1123.
pub fn dns1123_label(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > LABEL_MAX {
        errors.push(max_len_error(LABEL_MAX));
    }
    if !label_shaped(text) {
        errors.push(if subdomain_shaped(text) {
            "must not contain dots".to_owned()
        } else {
            regex_error(
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character",
                LABEL_FMT,
                &["my-name", "123-abc"],
            )
        });
    }
    errors
}

fn subdomain_error() -> String {
    regex_error(
        "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character",
        SUBDOMAIN_FMT,
        &["example.com"],
    )
}

/// A DNS subdomain of RFC 1123.
pub fn dns1123_subdomain(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > SUBDOMAIN_MAX {
        errors.push(max_len_error(SUBDOMAIN_MAX));
    }
    if !subdomain_shaped(text) {
        errors.push(subdomain_error());
    }
    errors
}

/// A DNS subdomain whose labels may begin with, and contain, underscores.
pub fn dns1123_subdomain_with_underscore(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > SUBDOMAIN_MAX {
        errors.push(max_len_error(SUBDOMAIN_MAX));
    }
    let label = |label: &str| {
        let body = label.strip_prefix('_').unwrap_or(label);
        shaped(
            body,
            lower_alnum,
            |b| lower_alnum(b) || matches!(b, b'-' | b'_'),
            lower_alnum,
        )
    };
    if !text.split('.').all(label) {
        errors.push(regex_error(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character",
            r"_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*",
            &["example.com"],
        ));
    }
    errors
}

/// A DNS label of RFC 1035: it begins with a letter.
pub fn dns1035_label(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > LABEL_MAX {
        errors.push(max_len_error(LABEL_MAX));
    }
    if !shaped(
        text,
        |b| b.is_ascii_lowercase(),
        |b| lower_alnum(b) || b == b'-',
        lower_alnum,
    ) {
        errors.push(regex_error(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character",
            "[a-z]([-a-z0-9]*[a-z0-9])?",
            &["my-name", "abc-123"],
        ));
    }
    errors
}

/// A wildcard (`*.`) before a DNS subdomain.
pub fn wildcard_dns1123_subdomain(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > SUBDOMAIN_MAX {
        errors.push(max_len_error(SUBDOMAIN_MAX));
    }
    if !text.strip_prefix("*.").is_some_and(subdomain_shaped) {
        errors.push(regex_error(
            "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character",
            &format!(r"\*\.{SUBDOMAIN_FMT}"),
            &["*.example.com"],
        ));
    }
    errors
}

/// A qualified name, which is also what a label key is: `[prefix/]name`.
pub fn qualified_name(text: &str) -> Vec<String> {
    let shape = || {
        regex_error(
            "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
            LABEL_KEY_FMT,
            &["MyName", "my.name", "123-abc"],
        )
    };
    let mut errors = Vec::new();
    let mut parts = text.split('/');
    let name = match (parts.next(), parts.next(), parts.next()) {
        (Some(name), None, _) => name,
        (Some(prefix), Some(name), None) => {
            if prefix.is_empty() {
                errors.push("prefix part must be non-empty".to_owned());
            } else {
                if prefix.len() > SUBDOMAIN_MAX {
                    errors.push(format!("prefix part {}", max_bytes_error(SUBDOMAIN_MAX)));
                }
                if !subdomain_shaped(prefix) {
                    errors.push(format!("prefix part {}", subdomain_error()));
                }
            }
            name
        }
        _ => {
            errors.push(format!(
                "a valid label key {} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                shape()
            ));
            return errors;
        }
    };
    if name.is_empty() {
        errors.push("name part must be non-empty".to_owned());
    } else if name.len() > LABEL_MAX {
        errors.push(format!("name part {}", max_bytes_error(LABEL_MAX)));
    }
    if !label_key_shaped(name) {
        errors.push(format!("name part {}", shape()));
    }
    errors
}

/// A label's value.
pub fn label_value(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > LABEL_MAX {
        errors.push(max_bytes_error(LABEL_MAX));
    }
    if !text.is_empty() && !label_key_shaped(text) {
        errors.push(regex_error(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
            &format!("({LABEL_KEY_FMT})?"),
            &["MyValue", "my_value", "12345"],
        ));
    }
    errors
}

/// A segment of an HTTP path, so any name that can be stored.
pub fn path_segment(text: &str, prefix: bool) -> Vec<String> {
    if !prefix && matches!(text, "." | "..") {
        return vec![format!("may not be '{text}'")];
    }
    ["/", "%"]
        .iter()
        .filter(|bad| text.contains(**bad))
        .map(|bad| format!("may not contain '{bad}'"))
        .collect()
}

/// A C identifier.
pub fn c_identifier(text: &str) -> Vec<String> {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    if shaped(text, |b| b.is_ascii_alphabetic() || b == b'_', inner, inner) {
        return Vec::new();
    }
    vec![regex_error(
        "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_'",
        "[A-Za-z_][A-Za-z0-9_]*",
        &["my_name", "MY_NAME", "MyName"],
    )]
}

/// A port number.
pub fn port_number(port: i64) -> Vec<String> {
    in_range(port, 1, 65535)
}

/// A number within inclusive bounds.
pub fn in_range(number: i64, low: i64, high: i64) -> Vec<String> {
    if (low..=high).contains(&number) {
        Vec::new()
    } else {
        vec![inclusive_range_error(low, high)]
    }
}

/// A Unix user or group id.
pub fn unix_id(id: i64) -> Vec<String> {
    in_range(id, 0, i64::from(i32::MAX))
}

/// A port's name (RFC 6335, lower case only).
pub fn port_name(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > 15 {
        errors.push(max_len_error(15));
    }
    if text.is_empty() || !text.bytes().all(|b| lower_alnum(b) || b == b'-') {
        errors.push(
            "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned(),
        );
    }
    if !text.bytes().any(|b| b.is_ascii_lowercase()) {
        errors.push("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        errors.push("must not contain consecutive hyphens".to_owned());
    }
    if text.starts_with('-') || text.ends_with('-') {
        errors.push("must not begin or end with a hyphen".to_owned());
    }
    errors
}

/// A percentage like `25%`.
pub fn percent(text: &str) -> Vec<String> {
    let ok = text
        .strip_suffix('%')
        .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    if ok {
        return Vec::new();
    }
    vec![regex_error(
        "a valid percent string must be a numeric string followed by an ending '%'",
        "[0-9]+%",
        &["1%", "93%"],
    )]
}

/// An HTTP header's name.
pub fn http_header_name(text: &str) -> Vec<String> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Vec::new();
    }
    vec![regex_error(
        "a valid HTTP header must consist of alphanumeric characters or '-'",
        "[-A-Za-z0-9]+",
        &["X-Header-Name"],
    )]
}

/// An environment variable's name, in the strict form.
pub fn env_var_name(text: &str) -> Vec<String> {
    let first = |b: u8| b.is_ascii_alphabetic() || matches!(b, b'-' | b'.' | b'_');
    let inner = |b: u8| first(b) || b.is_ascii_digit();
    let mut errors = Vec::new();
    if !shaped(text, first, inner, inner) {
        errors.push(regex_error(
            "a valid environment variable name must consist of alphabetic characters, digits, '_', '-', or '.', and must not start with a digit",
            "[-._a-zA-Z][-._a-zA-Z0-9]*",
            &["my.env-name", "MY_ENV.NAME", "MyEnvName1"],
        ));
    }
    errors.extend(ch_dir_prefix(text));
    errors
}

/// An environment variable's name, in the relaxed form that is the default since v1.34.
pub fn relaxed_env_var_name(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.is_empty() {
        errors.push("environment variable name must be non-empty".to_owned());
    }
    if !text
        .bytes()
        .all(|b| (b' '..=b'~').contains(&b) && b != b'=')
    {
        errors.push(
            "a valid environment variable name must consist only of printable ASCII characters other than '='"
                .to_owned(),
        );
    }
    errors
}

/// A key of a ConfigMap or Secret.
pub fn config_map_key(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > SUBDOMAIN_MAX {
        errors.push(max_len_error(SUBDOMAIN_MAX));
    }
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if text.is_empty() || !text.bytes().all(inner) {
        errors.push(regex_error(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    errors.extend(ch_dir_prefix(text));
    errors
}

fn ch_dir_prefix(text: &str) -> Option<String> {
    match text {
        "." | ".." => Some(format!("must not be '{text}'")),
        _ if text.starts_with("..") => Some("must not start with '..'".to_owned()),
        _ => None,
    }
}

/// The name rule of most kinds: a DNS subdomain; as a prefix it may end in a dash
/// (upstream `NameIsDNSSubdomain`, with its way of masking that dash).
pub fn name_is_dns_subdomain(name: &str, prefix: bool) -> Vec<String> {
    dns1123_subdomain(&masked(name, prefix))
}

/// The name rule of namespaces and the like: a DNS label (upstream `NameIsDNSLabel`).
pub fn name_is_dns_label(name: &str, prefix: bool) -> Vec<String> {
    dns1123_label(&masked(name, prefix))
}

/// The name rule of services before v1.34: a DNS-1035 label (upstream `NameIsDNS1035Label`).
pub fn name_is_dns1035_label(name: &str, prefix: bool) -> Vec<String> {
    dns1035_label(&masked(name, prefix))
}

fn masked(name: &str, prefix: bool) -> std::borrow::Cow<'_, str> {
    // Upstream cuts two characters for the one dash; kept, as it decides what passes.
    let cut = name.len().saturating_sub(2);
    if prefix && name.len() > 1 && name.ends_with('-') && name.is_char_boundary(cut) {
        format!("{}a", &name[..cut]).into()
    } else {
        name.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rule: fn(&str) -> Vec<String>, good: &[&str], bad: &[&str]) {
        for text in good {
            assert_eq!(rule(text), Vec::<String>::new(), "{text:?}");
        }
        for text in bad {
            assert!(!rule(text).is_empty(), "{text:?} passed");
        }
    }

    #[test]
    fn rules() {
        let long63 = "a".repeat(63);
        let long64 = "a".repeat(64);
        check(
            dns1123_label,
            &["a", "0", "a-1", &long63],
            &["", "-a", "a-", "A", "a.b", "a_b", "é", &long64],
        );
        check(
            dns1123_subdomain,
            &["a", "a.b-c.0"],
            &["", ".", "a..b", "a.", "A.b", &"a".repeat(254)],
        );
        check(dns1035_label, &["a", "a1"], &["1a", "a.b", ""]);
        check(
            wildcard_dns1123_subdomain,
            &["*.a.b"],
            &["*", "*.", "*.*.a", "a.b"],
        );
        check(
            qualified_name,
            &["a", "A_b.c", "x.y/Z", &long63],
            &["", "/a", "a/", "a/b/c", "X/y", "-a", &long64],
        );
        check(label_value, &["", "a", "1_2.3"], &["-", "a b", &long64]);
        check(port_name, &["http", "a-1"], &["", "1", "-a", "a--b", "A"]);
        check(
            config_map_key,
            &["a.b", "..a".trim_start_matches('.')],
            &["", ".", "..", "..a", "a/b"],
        );
        check(env_var_name, &["A", "_x.y-z"], &["1a", "a b", "..x"]);
        check(relaxed_env_var_name, &["1 a!"], &["", "a=b", "é"]);
        check(percent, &["10%"], &["%", "10", "1.5%"]);
        check(
            |t| path_segment(t, false),
            &["a:b"],
            &[".", "..", "a/b", "a%b"],
        );
    }

    #[test]
    fn words() {
        assert_eq!(
            dns1123_subdomain("X")[0],
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
        );
        assert_eq!(
            label_value("-")[0],
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
        );
        assert_eq!(name_is_dns_label("web-", true), Vec::<String>::new());
        assert!(!name_is_dns_label("web-", false).is_empty());
    }
}
