//! `cargo xtask gen`: turns the shared API facts into the compact tables that `keelson-machinery` includes.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::gen_go::{self, GoType};

/// The API version whose facts are used.
const VERSION: &str = "v1.36";

/// Writes (or with `check` compares) the tables.
pub fn run(check: bool, go_api: Option<&Path>) -> Result<()> {
    let facts = crate::shared().join("facts").join(VERSION);
    if !facts.is_dir() {
        if check {
            eprintln!(
                "SKIPPED: gen --check: no facts at {} (set KEELSON_SHARED)",
                facts.display()
            );
            return Ok(());
        }
        bail!("no facts at {} (set KEELSON_SHARED)", facts.display());
    }
    let types = read(&facts.join("types.txt"))?;
    let go_path = crate::root().join("xtask/facts/go-fields.txt");
    if let Some(checkout) = go_api {
        let found = gen_go::scan(checkout, &type_names(&types))?;
        fs::write(&go_path, gen_go::render(&found))
            .with_context(|| format!("write {}", go_path.display()))?;
    }
    let go = gen_go::parse(&read(&go_path)?)?;
    let outputs = [
        (
            "machinery/src/schema/types.txt",
            compact_types(&types, &go, &published(&facts.join("openapi-v3"), &types)?)?,
        ),
        (
            "machinery/src/catalog/resources.tsv",
            read(&facts.join("resources.tsv"))?,
        ),
        (
            "machinery/src/catalog/columns.tsv",
            read(&facts.join("columns.tsv"))?,
        ),
    ];
    for (name, text) in outputs {
        emit(&crate::root().join(name), name, &text, check)?;
    }
    Ok(())
}

fn emit(path: &PathBuf, name: &str, text: &str, check: bool) -> Result<()> {
    let old = fs::read_to_string(path).unwrap_or_default();
    if check {
        if old != text {
            bail!("{name} differs from the facts: run `cargo xtask gen`");
        }
        println!("{name} is up to date");
    } else if old != text {
        fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
        println!("wrote {name}");
    }
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

fn type_names(types: &str) -> HashSet<String> {
    types
        .lines()
        .filter_map(|l| l.strip_prefix("type "))
        .filter_map(|l| l.split_whitespace().next())
        .map(str::to_string)
        .collect()
}

/// The compact form: `P package`, `T Name marks`, then per field `name number type marks`. A type is `s b i l
/// d y` (string, bool, int32, int64, double, bytes), `.Name` (same package), `core.v1.Name` (io.k8s.api),
/// `~apis.meta.v1.Name` (io.k8s.apimachinery.pkg) or `!full.name`; `[]` before it means repeated, `{}` a map.
fn compact_types(
    types: &str,
    go: &BTreeMap<String, GoType>,
    published: &BTreeMap<String, Published>,
) -> Result<String> {
    let mut out = String::new();
    let mut schema: Option<&Published> = None;
    let mut package = String::new();
    let mut current: Option<&GoType> = None;
    for (index, line) in types.lines().enumerate() {
        let at = || format!("types.txt line {}", index + 1);
        let words: Vec<&str> = line.split_whitespace().collect();
        if let (true, ["type", name, marks @ ..]) = (line.starts_with("type "), &words[..]) {
            let (pkg, short) = name.rsplit_once('.').with_context(at)?;
            if pkg != package {
                package = pkg.to_string();
                out.push_str(&format!("P {pkg}\n"));
            }
            current = go.get(*name);
            schema = published.get(*name);
            out.push_str(&format!("T {short}"));
            for mark in marks {
                out.push_str(&format!(" {mark}"));
            }
            if current.is_some_and(|g| g.type_meta) {
                out.push_str(" typemeta");
            }
            // Go has no struct for a message that only wraps a list: there the list itself is the type.
            let first = types.lines().nth(index + 1).unwrap_or("");
            if current.is_none() && first.starts_with("  items 1 repeated ") {
                out.push_str(" list");
            }
            out.push('\n');
            continue;
        }
        let [name, number, cardinality, kind, marks @ ..] = &words[..] else {
            bail!("{}: unexpected {line:?}", at());
        };
        let mut protoname = String::new();
        let kind = match *cardinality {
            "optional" => compact_kind(kind, &package),
            "repeated" => format!("[]{}", compact_kind(kind, &package)),
            "map" => {
                let value = kind
                    .strip_prefix("map<string,")
                    .and_then(|k| k.strip_suffix('>'))
                    .with_context(|| format!("{}: bad map {kind:?}", at()))?;
                format!("{{}}{}", compact_kind(value, &package))
            }
            other => bail!("{}: unknown cardinality {other:?}", at()),
        };
        let found = current.and_then(|g| g.fields.get(&number.parse::<u32>().ok()?));
        // Types outside the published OpenAPI lack the mark, and have their wire names in the facts; Go's tag has the JSON name.
        let mut json_name = *name;
        if let Some(field) = found.filter(|f| !f.inline && f.json != *name) {
            json_name = &field.json;
            if !marks.iter().any(|m| m.starts_with("protoname=")) {
                protoname = format!(" protoname={name}");
            }
        }
        out.push_str(&format!("{json_name} {number} {kind}{protoname}"));
        if found.is_some_and(|f| f.inline) && !marks.contains(&"inline") {
            out.push_str(" inline");
        }
        for mark in marks {
            // The format follows from the type.
            if !mark.starts_with("format=") {
                out.push_str(&format!(" {mark}"));
            }
        }
        if let Some(schema) = schema {
            out.push_str(&schema.marks(json_name));
        }
        if let Some(field) = found {
            for (on, flag) in [
                (field.pointer, " p"),
                (field.always, " a"),
                (field.omit_zero, " z"),
            ] {
                if on {
                    out.push_str(flag);
                }
            }
            if let Some(default) = &field.default
                && !marks.iter().any(|m| m.starts_with("default="))
            {
                out.push_str(&format!(" default={default}"));
            }
            if field.go_type != derived_go_type(&package, cardinality, &words) {
                out.push_str(&format!(" go={}", field.go_type));
            }
        } else if current.is_some_and(|g| !g.fields.is_empty()) {
            eprintln!("note: no Go declaration for {package} {line:?}");
        }
        out.push('\n');
    }
    Ok(out)
}

/// The published OpenAPI schema that shows the fields of a type that is not published itself: that of a type which
/// inlines it. The facts' type list knows no more of such fields than their types.
struct Published(Value);

/// For each unpublished type that a published one inlines, that one's schema.
fn published(dir: &Path, types: &str) -> Result<BTreeMap<String, Published>> {
    let mut schemas: BTreeMap<String, Value> = BTreeMap::new();
    for entry in fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let path = entry?.path();
        let mut document: Value = serde_json::from_str(&read(&path)?)
            .with_context(|| format!("parse {}", path.display()))?;
        if let Value::Object(found) = document["components"]["schemas"].take() {
            schemas.extend(found);
        }
    }
    let mut out = BTreeMap::new();
    let mut outer = "";
    for line in types.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match &words[..] {
            ["type", name, ..] => outer = name,
            [_, _, _, inner, marks @ ..] if marks.contains(&"inline") => {
                if let (Some(schema), false) = (schemas.get(outer), schemas.contains_key(*inner)) {
                    out.entry(inner.to_string())
                        .or_insert_with(|| Published(schema.clone()));
                }
            }
            _ => {}
        }
    }
    Ok(out)
}

impl Published {
    /// The marks of a field that the type list lacks but the schema tells.
    fn marks(&self, json_name: &str) -> String {
        let property = &self.0["properties"][json_name];
        let mut out = String::new();
        let required = self.0["required"].as_array();
        if required.is_some_and(|names| names.iter().any(|name| name == json_name)) {
            out.push_str(" required");
        }
        for (mark, extension) in [
            ("list", "x-kubernetes-list-type"),
            ("keys", "x-kubernetes-list-map-keys"),
            ("map", "x-kubernetes-map-type"),
            ("strategy", "x-kubernetes-patch-strategy"),
            ("mergekey", "x-kubernetes-patch-merge-key"),
        ] {
            let text = match &property[extension] {
                Value::String(text) => text.clone(),
                Value::Array(items) => {
                    let items: Vec<&str> = items.iter().filter_map(Value::as_str).collect();
                    items.join(",")
                }
                _ => continue,
            };
            out.push_str(&format!(" {mark}={text}"));
        }
        out
    }
}

fn compact_kind(kind: &str, package: &str) -> String {
    match kind {
        "string" => "s".to_string(),
        "bool" => "b".to_string(),
        "int32" => "i".to_string(),
        "int64" => "l".to_string(),
        "double" => "d".to_string(),
        "bytes" => "y".to_string(),
        message => match message.rsplit_once('.') {
            Some((p, short)) if p == package => format!(".{short}"),
            _ => match (
                message.strip_prefix("io.k8s.api."),
                message.strip_prefix("io.k8s.apimachinery.pkg."),
            ) {
                (Some(rest), _) => rest.to_string(),
                (_, Some(rest)) => format!("~{rest}"),
                _ => format!("!{message}"),
            },
        },
    }
}

/// The Go type that the wire type suggests; only exceptions are kept in the table.
fn derived_go_type(package: &str, cardinality: &str, words: &[&str]) -> String {
    let base = words[3]
        .strip_prefix("map<string,")
        .and_then(|k| k.strip_suffix('>'))
        .unwrap_or(words[3]);
    let base = match base {
        "double" => "float64".to_string(),
        "bytes" => "[]uint8".to_string(),
        scalar if !scalar.contains('.') => scalar.to_string(),
        message => {
            let mut parts = message.rsplit('.');
            let name = parts.next().unwrap_or("");
            let pkg = parts.next().unwrap_or(package);
            format!("{pkg}.{name}")
        }
    };
    match cardinality {
        "repeated" => format!("[]{base}"),
        "map" => format!("map[string]{base}"),
        _ => base,
    }
}

#[cfg(test)]
mod tests {
    /// The checked-in tables are what the facts make.
    #[test]
    fn tables_are_up_to_date() {
        super::run(true, None).unwrap_or_else(|e| panic!("{e:#}"));
    }
}
