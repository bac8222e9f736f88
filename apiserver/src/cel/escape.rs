//! Names of members that CEL's grammar cannot spell (upstream `k8s.io/apiserver/pkg/cel.Escape`): `namespace` is
//! written `__namespace__`, `a-b` is `a__dash__b`.

/// CEL's reserved words.
pub const RESERVED: [&str; 21] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

const PARTS: [(&str, &str); 4] = [
    ("__", "underscores"),
    (".", "dot"),
    ("-", "dash"),
    ("/", "slash"),
];

/// The name in expressions; `None` for a name that cannot be spelled at all.
pub fn escape(name: &str) -> Option<String> {
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    if RESERVED.contains(&name) {
        return Some(format!("__{name}__"));
    }
    let mut out = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(c) = rest.chars().next() {
        if let Some((part, word)) = PARTS.iter().find(|(part, _)| rest.starts_with(part)) {
            out.push_str(&format!("__{word}__"));
            rest = &rest[part.len()..];
            continue;
        }
        if !(c.is_ascii_alphanumeric() || c == '_') {
            return None;
        }
        out.push(c);
        rest = &rest[c.len_utf8()..];
    }
    Some(out)
}

/// The member's own name; `None` when the text is no escaped name.
pub fn unescape(escaped: &str) -> Option<String> {
    if !escaped.contains("__") {
        return Some(escaped.to_string());
    }
    let mut out = String::with_capacity(escaped.len());
    let mut rest = escaped;
    while let Some(at) = rest.find("__") {
        out.push_str(&rest[..at]);
        let after = &rest[at + 2..];
        let end = after.find("__")?;
        let word = &after[..end];
        match PARTS.iter().find(|(_, known)| *known == word) {
            Some((part, _)) => out.push_str(part),
            None if RESERVED.contains(&word) && out.is_empty() && after[end + 2..].is_empty() => {
                out.push_str(word);
            }
            None => return None,
        }
        rest = &after[end + 2..];
    }
    out.push_str(rest);
    Some(out)
}
