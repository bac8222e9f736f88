//! Facts that only the Go declarations of the API types tell: whether a field is a pointer, whether its JSON
//! form is left out when empty, and the Go type name that decode errors mention. Reads `types*.go` of a
//! Kubernetes checkout and writes one line per field, keyed by type and wire number.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// What one Go struct field declares.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GoField {
    /// The JSON name; for embedded structs the Go name.
    pub json: String,
    /// The Go field is a pointer.
    pub pointer: bool,
    /// The JSON tag lacks `omitempty`: the member is written even when empty.
    pub always: bool,
    /// The JSON tag has `omitzero`.
    pub omit_zero: bool,
    /// The struct is embedded: its members stand directly in the parent's JSON object.
    pub inline: bool,
    /// The declared default (`+default=`) of a pointer, as JSON. The facts leave out empty ones, which for a pointer
    /// are not the same as none.
    pub default: Option<String>,
    /// The Go type without pointer, package names spelled as the compiler prints them.
    pub go_type: String,
}

/// What one Go struct declares.
#[derive(Clone, Debug, Default)]
pub struct GoType {
    /// The struct embeds `TypeMeta`: its JSON form has `kind` and `apiVersion`.
    pub type_meta: bool,
    /// By protobuf field number.
    pub fields: BTreeMap<u32, GoField>,
}

/// All structs of the API packages below `checkout`, by the name they have in the type table.
pub fn scan(checkout: &Path, wanted: &HashSet<String>) -> Result<BTreeMap<String, GoType>> {
    let staging = checkout.join("staging/src/k8s.io");
    let mut packages: Vec<&str> = wanted
        .iter()
        .filter_map(|name| name.rsplit_once('.').map(|(p, _)| p))
        .collect();
    packages.sort_unstable();
    packages.dedup();
    let mut out = BTreeMap::new();
    for package in packages {
        let dir = staging.join(package_dir(package));
        if !dir.is_dir() {
            continue;
        }
        for entry in fs::read_dir(&dir).with_context(|| format!("read {}", dir.display()))? {
            let path = entry?.path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
            let skip = ["zz_", "generated", "_test.go", "conversion", "swagger"];
            if !name.ends_with(".go") || skip.iter().any(|s| name.contains(s)) {
                continue;
            }
            let text =
                fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            scan_file(package, &text, wanted, &mut out);
        }
    }
    Ok(out)
}

fn package_dir(package: &str) -> String {
    let rest = package.strip_prefix("io.k8s.").unwrap_or(package);
    // custom-metrics is custom_metrics on disk; module names such as kube-aggregator keep their dash.
    let mut dir = rest.replace('.', "/");
    for name in ["custom", "external"] {
        dir = dir.replace(&format!("{name}-metrics/"), &format!("{name}_metrics/"));
    }
    dir
}

fn scan_file(
    package: &str,
    text: &str,
    wanted: &HashSet<String>,
    out: &mut BTreeMap<String, GoType>,
) {
    let own = package.rsplit('.').next().unwrap_or(package);
    let mut imports: HashMap<String, String> = HashMap::new();
    let mut current: Option<(String, GoType)> = None;
    let mut default = None;
    for line in text.lines() {
        let trimmed = line.trim();
        match &mut current {
            None => {
                if let Some((alias, last)) = import(trimmed) {
                    imports.insert(alias, last);
                }
                if let Some(name) = line
                    .strip_prefix("type ")
                    .and_then(|r| r.strip_suffix(" struct {"))
                {
                    let full = format!("{package}.{name}");
                    if wanted.contains(&full) {
                        current = Some((full, GoType::default()));
                    }
                }
            }
            Some((name, found)) => {
                if line.starts_with('}') {
                    out.insert(name.clone(), std::mem::take(found));
                    current = None;
                } else if let Some(comment) = trimmed.strip_prefix("//") {
                    if let Some(text) = comment.trim().strip_prefix("+default=") {
                        default = Some(text.to_string()).filter(|t| !t.starts_with("ref("));
                    }
                } else {
                    scan_field(trimmed, own, &imports, default.take(), found);
                }
            }
        }
    }
}

fn import(line: &str) -> Option<(String, String)> {
    let line = line.strip_prefix("import ").unwrap_or(line);
    let (alias, rest) = line.split_once('"')?;
    let path = rest.strip_suffix('"')?;
    if !path.contains('/') || path.contains(' ') {
        return None;
    }
    let last = path.rsplit('/').next()?.to_string();
    let alias = alias.trim();
    let alias = if alias.is_empty() { &last } else { alias };
    Some((alias.to_string(), last.clone()))
}

fn scan_field(
    line: &str,
    own: &str,
    imports: &HashMap<String, String>,
    default: Option<String>,
    found: &mut GoType,
) {
    let Some((decl, tag)) = line.split_once('`') else {
        return;
    };
    let Some(json) = tag
        .split("json:\"")
        .nth(1)
        .and_then(|t| t.split('"').next())
    else {
        return;
    };
    let mut words = decl.split_whitespace();
    let (Some(first), second) = (words.next(), words.next()) else {
        return;
    };
    let (json_name, options) = json.split_once(',').unwrap_or((json, ""));
    if json_name == "-" {
        return;
    }
    let number = tag
        .split("protobuf:\"")
        .nth(1)
        .and_then(|t| t.split(',').nth(1))
        .and_then(|n| n.parse::<u32>().ok());
    let embedded = second.is_none();
    if embedded && first.ends_with("TypeMeta") {
        found.type_meta = true;
        return;
    }
    let Some(number) = number else {
        return;
    };
    let spelled = second.unwrap_or(first);
    let json = if json_name.is_empty() {
        spelled
            .trim_start_matches('*')
            .rsplit('.')
            .next()
            .unwrap_or("")
    } else {
        json_name
    };
    let options: Vec<&str> = options.split(',').collect();
    let pointer = spelled.starts_with('*');
    found.fields.insert(
        number,
        GoField {
            json: json.to_string(),
            pointer,
            always: !options.contains(&"omitempty") && !options.contains(&"inline"),
            omit_zero: options.contains(&"omitzero"),
            inline: options.contains(&"inline"),
            default: default.filter(|_| pointer),
            go_type: go_type(spelled.trim_start_matches('*'), own, imports),
        },
    );
}

/// `[]Container` in package v1 is `[]v1.Container` to the Go runtime.
fn go_type(spelled: &str, own: &str, imports: &HashMap<String, String>) -> String {
    if let Some(rest) = spelled.strip_prefix("[]") {
        return format!("[]{}", go_type(rest, own, imports));
    }
    if let Some(rest) = spelled.strip_prefix('*') {
        return format!("*{}", go_type(rest, own, imports));
    }
    if let Some((key, value)) = spelled.strip_prefix("map[").and_then(|r| r.split_once(']')) {
        let (key, value) = (go_type(key, own, imports), go_type(value, own, imports));
        return format!("map[{key}]{value}");
    }
    let builtin = [
        "string", "bool", "int", "int32", "int64", "float64", "byte", "uint8", "any",
    ];
    if spelled == "byte" {
        return "uint8".to_string();
    }
    if builtin.contains(&spelled) {
        return spelled.to_string();
    }
    match spelled.split_once('.') {
        Some((alias, name)) => {
            let package = imports.get(alias).map_or(alias, String::as_str);
            format!("{package}.{name}")
        }
        None => format!("{own}.{spelled}"),
    }
}

/// The text form kept in `xtask/facts/go-fields.txt`.
pub fn render(types: &BTreeMap<String, GoType>) -> String {
    let mut out = String::from(
        "# Go declarations of the API types, v1.36, by wire number: JSON or embedded name, `p` pointer, `a` written even when empty, `z` omitzero, `i` inline, then the\n\
         # Go type and a pointer's declared default. Made by `cargo xtask gen --go-api <kubernetes checkout>`.\n",
    );
    for (name, found) in types {
        out.push_str(name);
        if found.type_meta {
            out.push_str(" typemeta");
        }
        out.push('\n');
        for (number, field) in &found.fields {
            let mut flags = String::new();
            for (on, flag) in [
                (field.pointer, 'p'),
                (field.always, 'a'),
                (field.omit_zero, 'z'),
                (field.inline, 'i'),
            ] {
                if on {
                    flags.push(flag);
                }
            }
            if flags.is_empty() {
                flags.push('-');
            }
            let default = match &field.default {
                Some(text) => format!(" default={text}"),
                None => String::new(),
            };
            out.push_str(&format!(
                " {number} {} {flags} {}{default}\n",
                field.json, field.go_type
            ));
        }
    }
    out
}

/// Reads [`render`]'s text form back.
pub fn parse(text: &str) -> Result<BTreeMap<String, GoType>> {
    let mut out: BTreeMap<String, GoType> = BTreeMap::new();
    let mut name = String::new();
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let Some(field) = line.strip_prefix(' ') {
            let [number, json, flags, go_type, ref rest @ ..] = words[..] else {
                anyhow::bail!("go-fields.txt: bad field line {field:?}");
            };
            let number = number
                .parse()
                .with_context(|| format!("go-fields.txt: bad field line {field:?}"))?;
            let field = GoField {
                json: json.to_string(),
                pointer: flags.contains('p'),
                always: flags.contains('a'),
                omit_zero: flags.contains('z'),
                inline: flags.contains('i'),
                default: rest
                    .iter()
                    .find_map(|w| w.strip_prefix("default="))
                    .map(str::to_string),
                go_type: go_type.to_string(),
            };
            out.entry(name.clone())
                .or_default()
                .fields
                .insert(number, field);
        } else if let Some(first) = words.first() {
            name = first.to_string();
            out.entry(name.clone()).or_default().type_meta = words.contains(&"typemeta");
        }
    }
    Ok(out)
}
