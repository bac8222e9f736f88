//! Every file of the wire fixtures (one object of every type as JSON, YAML and protobuf) goes through every codec in
//! every direction. The fixtures lie in `../shared/testdata/wire-v1.35` beside the checkout, or where
//! `KEELSON_WIRE_TESTDATA` says; without them the tests say so and pass.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use super::{Strictness, json, protobuf, yaml};
use crate::schema::{Schema, Type};
use crate::value::Value;

/// What upstream makes of a fixture whose type has lost fields since.
const AFTER: &str = ".after_roundtrip";

fn folder() -> Option<PathBuf> {
    let folder = match (
        std::env::var_os("KEELSON_WIRE_TESTDATA"),
        std::env::var_os("KEELSON_SHARED"),
    ) {
        (Some(dir), _) => PathBuf::from(dir),
        (_, Some(dir)) => PathBuf::from(dir).join("testdata/wire-v1.35"),
        _ => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/testdata/wire-v1.35"),
    };
    if folder.is_dir() {
        return Some(folder);
    }
    eprintln!("SKIPPED: no wire fixtures at {}", folder.display());
    None
}

/// One fixture: what goes in, and what is to come out (which differs where this version has dropped fields).
struct Case {
    name: String,
    of: &'static Type,
    input: Forms,
    output: Forms,
}

struct Forms {
    json: Vec<u8>,
    yaml: Vec<u8>,
    proto: Vec<u8>,
}

/// All fixtures, and the names of those whose kind this version does not have.
fn cases() -> Option<(Vec<Case>, Vec<String>)> {
    let folder = folder()?;
    let names: BTreeSet<String> = fs::read_dir(&folder)
        .expect("read the fixtures")
        .map(|e| {
            e.expect("read the fixtures")
                .file_name()
                .into_string()
                .expect("UTF-8 name")
        })
        .filter_map(|n| n.strip_suffix(".json").map(str::to_string))
        .collect();
    let read = |name: &str| {
        let file = |extension: &str| {
            // Where a form is the same after the round trip there is no second file of it.
            let original = name.strip_suffix(AFTER).unwrap_or(name);
            fs::read(folder.join(format!("{name}.{extension}")))
                .or_else(|_| fs::read(folder.join(format!("{original}.{extension}"))))
                .unwrap_or_else(|e| panic!("{name}.{extension}: {e}"))
        };
        Forms {
            json: file("json"),
            yaml: file("yaml"),
            proto: file("pb"),
        }
    };
    let (mut cases, mut gone) = (Vec::new(), Vec::new());
    for name in &names {
        if name.ends_with(AFTER) {
            continue;
        }
        // group.version.kind; the group has dots, or is "core".
        let (rest, kind) = name.rsplit_once('.').expect("a kind");
        let (group, version) = rest.rsplit_once('.').expect("a version");
        let group = if group == "core" { "" } else { group };
        let Some(of) = Schema::builtin().lookup_kind(group, version, kind) else {
            gone.push(name.clone());
            continue;
        };
        let after = format!("{name}{AFTER}");
        let output = read(if names.contains(&after) { &after } else { name });
        cases.push(Case {
            name: name.clone(),
            of,
            input: read(name),
            output,
        });
    }
    Some((cases, gone))
}

/// Runs `check` over all fixtures, prints how many passed, and fails with the first few that did not.
fn check_all(what: &str, check: impl Fn(&Case) -> Result<(), String>) {
    let Some((cases, gone)) = cases() else {
        return;
    };
    assert!(!cases.is_empty(), "no fixtures");
    let failed: Vec<String> = cases
        .iter()
        .filter_map(|c| check(c).err().map(|e| format!("{}: {e}", c.name)))
        .collect();
    println!(
        "wire {what}: {} of {} ({} kinds are not in this version: {})",
        cases.len() - failed.len(),
        cases.len(),
        gone.len(),
        gone.join(", ")
    );
    assert!(
        failed.is_empty(),
        "{} of {} failed:\n{}",
        failed.len(),
        cases.len(),
        failed[..failed.len().min(12)].join("\n")
    );
}

/// The first place where two values differ.
fn difference(got: &Value, want: &Value, path: &str) -> Option<String> {
    match (got, want) {
        (Value::Object(g), Value::Object(w)) => {
            let keys: BTreeSet<&String> = g.keys().chain(w.keys()).collect();
            keys.into_iter().find_map(|k| match (g.get(k), w.get(k)) {
                (Some(g), Some(w)) => difference(g, w, &format!("{path}.{k}")),
                (g, w) => Some(format!("{path}.{k}: got {g:?}, want {w:?}")),
            })
        }
        (Value::Array(g), Value::Array(w)) if g.len() == w.len() => g
            .iter()
            .zip(w)
            .enumerate()
            .find_map(|(i, (g, w))| difference(g, w, &format!("{path}[{i}]"))),
        _ => (got != want).then(|| format!("{path}: got {got}, want {want}")),
    }
}

fn same(got: &Value, want: &Value) -> Result<(), String> {
    difference(got, want, "").map_or(Ok(()), Err)
}

/// Kinds with a field that v1.35, which the fixtures are from, lacked, and what its empty value adds at the end of
/// their encoding.
const NEWER_FIELDS: [(&str, &[u8]); 1] = [("core.v1.ListOptions", b"\x7a\x00")]; // shardSelector

fn same_bytes(case: &str, got: &[u8], want: &[u8]) -> Result<(), String> {
    if got == want {
        return Ok(());
    }
    for (_, added) in NEWER_FIELDS.iter().filter(|(name, _)| *name == case) {
        let got = protobuf::decode_unknown(got).map_err(text)?.raw;
        let want = protobuf::decode_unknown(want).map_err(text)?.raw;
        if got == [want, added].concat() {
            return Ok(());
        }
    }
    let at = got.iter().zip(want).take_while(|(g, w)| g == w).count();
    let shown = |bytes: &[u8]| {
        let from = at.saturating_sub(24).min(bytes.len());
        bytes[from..(at + 24).min(bytes.len())]
            .escape_ascii()
            .to_string()
    };
    Err(format!(
        "bytes differ at {at} (lengths {} and {}): got {} want {}",
        got.len(),
        want.len(),
        shown(got),
        shown(want)
    ))
}

/// The fixture as upstream's JSON says it, untouched by our schema.
fn plain(bytes: &[u8]) -> Value {
    json::decode_any(bytes, Strictness::Lenient)
        .expect("JSON")
        .0
}

fn text(e: impl std::fmt::Display) -> String {
    e.to_string()
}

#[test]
fn wire_json_to_json() {
    check_all("JSON to JSON", |c| {
        let (value, _) = json::decode(&c.input.json, c.of, Strictness::Strict).map_err(text)?;
        same(&value, &plain(&c.output.json))?;
        same(&plain(&json::encode(&value)), &plain(&c.output.json))
    });
}

#[test]
fn wire_protobuf_to_json() {
    check_all("protobuf to JSON", |c| {
        let value = protobuf::decode_object(&c.input.proto, c.of).map_err(text)?;
        same(&value, &plain(&c.output.json))
    });
}

#[test]
fn wire_json_to_protobuf() {
    check_all("JSON to protobuf", |c| {
        let (value, _) = json::decode(&c.input.json, c.of, Strictness::Lenient).map_err(text)?;
        same_bytes(
            &c.name,
            &protobuf::encode_object(&value, c.of).map_err(text)?,
            &c.output.proto,
        )
    });
}

#[test]
fn wire_protobuf_to_protobuf() {
    check_all("protobuf to protobuf", |c| {
        let value = protobuf::decode_object(&c.input.proto, c.of).map_err(text)?;
        same_bytes(
            &c.name,
            &protobuf::encode_object(&value, c.of).map_err(text)?,
            &c.output.proto,
        )
    });
}

#[test]
fn wire_yaml() {
    check_all("YAML both ways", |c| {
        let (value, _) = yaml::decode(&c.input.yaml, c.of, Strictness::Strict).map_err(text)?;
        same(&value, &plain(&c.output.json))?;
        let (again, strict) =
            yaml::decode(&yaml::encode(&value), c.of, Strictness::Strict).map_err(text)?;
        if !strict.is_empty() {
            return Err(super::strict_message(&strict));
        }
        same(&again, &value)
    });
}

/// What strict decoding of fixtures objects to is exactly what the type no longer has.
#[test]
fn wire_strict_errors() {
    check_all("strict decoding", |c| {
        let (_, errors) = json::decode(&c.output.json, c.of, Strictness::Strict).map_err(text)?;
        if errors.is_empty() {
            Ok(())
        } else {
            Err(super::strict_message(&errors))
        }
    });
}
