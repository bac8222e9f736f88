//! One pass over an object's JSON that finds what the cache needs, without building the object: where the
//! resourceVersion stands or belongs, the labels, and the fields selectors may name. Everything else is skipped at
//! about the speed of reading it.

use std::borrow::Cow;
use std::sync::Arc;

use super::types::FieldSpec;

/// Why bytes could not be read; the position is a byte offset.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a JSON object as expected at byte {at}")]
pub(super) struct ScanError {
    at: usize,
}

/// Which paths of an object to look at; made once per resource.
#[derive(Debug, Default)]
pub(super) struct Plan {
    root: Node,
    defaults: Vec<Arc<str>>,
}

#[derive(Debug, Default)]
struct Node {
    children: Vec<(Arc<str>, Node)>,
    /// (field, rank of the path among those of the field).
    fields: Vec<(usize, usize)>,
    role: Role,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Role {
    #[default]
    Plain,
    Metadata,
    Labels,
    ResourceVersion,
}

impl Plan {
    pub fn new(fields: &[FieldSpec]) -> Self {
        let mut plan = Plan {
            root: Node::default(),
            defaults: fields.iter().map(|f| f.default.clone()).collect(),
        };
        let metadata = plan.root.child("metadata");
        metadata.role = Role::Metadata;
        metadata.child("labels").role = Role::Labels;
        metadata.child("resourceVersion").role = Role::ResourceVersion;
        for (field, spec) in fields.iter().enumerate() {
            for (rank, path) in spec.paths.iter().enumerate() {
                let mut node = &mut plan.root;
                for name in path {
                    node = node.child(name);
                }
                node.fields.push((field, rank));
            }
        }
        plan
    }
}

impl Node {
    fn child(&mut self, name: &str) -> &mut Node {
        let at = match self.children.iter().position(|(n, _)| &**n == name) {
            Some(at) => at,
            None => {
                self.children.push((name.into(), Node::default()));
                self.children.len() - 1
            }
        };
        &mut self.children[at].1
    }
}

/// What a scan found.
#[derive(Debug, Default)]
pub(super) struct Found<'a> {
    /// Sorted by key.
    pub labels: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    /// One per field of the plan.
    pub fields: Vec<Cow<'a, str>>,
    /// The value of `metadata.resourceVersion`, quotes included, if there is one.
    pub revision: Option<std::ops::Range<usize>>,
    /// Just behind the opening brace of `metadata`, and whether it has members.
    pub metadata: Option<(usize, bool)>,
    /// Whether the object has members at all (just behind its brace is where metadata would go).
    pub root: (usize, bool),
}

/// Reads `json`, which must be one object.
pub(super) fn scan<'a>(json: &'a [u8], plan: &'a Plan) -> Result<Found<'a>, ScanError> {
    let mut scanner = Scanner { json, at: 0 };
    let mut found = Found {
        fields: vec![Cow::Borrowed(""); plan.defaults.len()],
        ..Found::default()
    };
    // Rank of the path each field was found by; a smaller one wins.
    let mut ranks = vec![usize::MAX; plan.defaults.len()];
    scanner.space();
    scanner.expect(b'{')?;
    found.root = (scanner.at, scanner.has_members()?);
    scanner.members(&plan.root, &mut found, &mut ranks)?;
    scanner.space();
    if scanner.at != json.len() {
        return Err(scanner.error());
    }
    for ((field, rank), default) in found.fields.iter_mut().zip(&ranks).zip(&plan.defaults) {
        if *rank == usize::MAX {
            *field = Cow::Borrowed(default);
        }
    }
    found.labels.sort_unstable();
    Ok(found)
}

struct Scanner<'a> {
    json: &'a [u8],
    at: usize,
}

impl<'a> Scanner<'a> {
    fn error(&self) -> ScanError {
        ScanError { at: self.at }
    }

    fn space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.json.get(self.at) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Result<u8, ScanError> {
        self.json.get(self.at).copied().ok_or_else(|| self.error())
    }

    fn expect(&mut self, byte: u8) -> Result<(), ScanError> {
        if self.peek()? != byte {
            return Err(self.error());
        }
        self.at += 1;
        Ok(())
    }

    /// Whether the object whose brace was just read has members.
    fn has_members(&mut self) -> Result<bool, ScanError> {
        self.space();
        Ok(self.peek()? != b'}')
    }

    /// Reads the members of an object up to and including its closing brace.
    fn members(
        &mut self,
        node: &Node,
        found: &mut Found<'a>,
        ranks: &mut [usize],
    ) -> Result<(), ScanError> {
        if !self.has_members()? {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.space();
            let key = self.string()?;
            self.space();
            self.expect(b':')?;
            self.space();
            let child = node
                .children
                .iter()
                .find(|(name, _)| name.as_bytes() == key)
                .map(|(_, child)| child);
            match child {
                None => self.skip()?,
                Some(child) => self.value(child, found, ranks)?,
            }
            self.space();
            match self.peek()? {
                b',' => self.at += 1,
                b'}' => {
                    self.at += 1;
                    return Ok(());
                }
                _ => return Err(self.error()),
            }
        }
    }

    /// Reads a value that is on some path.
    fn value(
        &mut self,
        node: &Node,
        found: &mut Found<'a>,
        ranks: &mut [usize],
    ) -> Result<(), ScanError> {
        let start = self.at;
        match self.peek()? {
            b'{' => {
                self.at += 1;
                match node.role {
                    Role::Labels => return self.labels(found),
                    Role::Metadata => {
                        found.metadata = Some((self.at, self.has_members()?));
                    }
                    Role::Plain | Role::ResourceVersion => {}
                }
                return self.members(node, found, ranks);
            }
            b'[' => return self.skip(),
            _ => self.skip()?,
        }
        let raw = &self.json[start..self.at];
        if node.role == Role::ResourceVersion {
            found.revision = Some(start..self.at);
        }
        if node.fields.is_empty() || raw == b"null" || raw == b"\"\"" {
            return Ok(());
        }
        let text = match raw {
            [b'"', inner @ .., b'"'] => unescape(inner).ok_or(ScanError { at: start })?,
            other => {
                Cow::Borrowed(std::str::from_utf8(other).map_err(|_| ScanError { at: start })?)
            }
        };
        for (field, rank) in &node.fields {
            if *rank < ranks[*field] {
                ranks[*field] = *rank;
                found.fields[*field] = text.clone();
            }
        }
        Ok(())
    }

    fn labels(&mut self, found: &mut Found<'a>) -> Result<(), ScanError> {
        if !self.has_members()? {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.space();
            let at = self.at;
            let key = unescape(self.string()?).ok_or(ScanError { at })?;
            self.space();
            self.expect(b':')?;
            self.space();
            if self.peek()? == b'"' {
                let at = self.at;
                let value = unescape(self.string()?).ok_or(ScanError { at })?;
                found.labels.push((key, value));
            } else {
                self.skip()?;
            }
            self.space();
            match self.peek()? {
                b',' => self.at += 1,
                b'}' => {
                    self.at += 1;
                    return Ok(());
                }
                _ => return Err(self.error()),
            }
        }
    }

    /// Reads a string; returns what stands between its quotes, escapes and all.
    fn string(&mut self) -> Result<&'a [u8], ScanError> {
        self.expect(b'"')?;
        let start = self.at;
        loop {
            match self.peek()? {
                b'"' => {
                    self.at += 1;
                    return Ok(&self.json[start..self.at - 1]);
                }
                b'\\' => self.at += 2,
                _ => self.at += 1,
            }
        }
    }

    /// Skips a value of any kind.
    fn skip(&mut self) -> Result<(), ScanError> {
        let mut depth = 0usize;
        loop {
            match self.peek()? {
                b'"' => {
                    self.string()?;
                }
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                }
                b'}' | b']' => {
                    // A closing bracket without its opening one.
                    depth = depth.checked_sub(1).ok_or_else(|| self.error())?;
                    self.at += 1;
                }
                b',' | b':' | b' ' | b'\n' | b'\r' | b'\t' => {
                    if depth == 0 {
                        return Err(self.error());
                    }
                    self.at += 1;
                    continue;
                }
                _ => {
                    // A number, true, false or null.
                    while let Some(b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'+' | b'-' | b'.') =
                        self.json.get(self.at)
                    {
                        self.at += 1;
                    }
                    if !matches!(
                        self.json.get(self.at),
                        None | Some(b',' | b'}' | b']' | b' ' | b'\n' | b'\r' | b'\t')
                    ) {
                        return Err(self.error());
                    }
                }
            }
            if depth == 0 {
                return Ok(());
            }
        }
    }
}

/// What a string means; `None` when it is not one.
fn unescape(inner: &[u8]) -> Option<Cow<'_, str>> {
    if !inner.contains(&b'\\') {
        return std::str::from_utf8(inner).ok().map(Cow::Borrowed);
    }
    let quoted = [b"\"", inner, b"\""].concat();
    serde_json::from_slice(&quoted).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(label: &str, paths: &[&str], default: &str) -> FieldSpec {
        FieldSpec {
            label: label.into(),
            paths: paths
                .iter()
                .map(|p| p.split('.').map(Arc::from).collect())
                .collect(),
            default: default.into(),
            indexed: false,
        }
    }

    #[test]
    fn finds_what_selectors_need() {
        let plan = Plan::new(&[
            spec("spec.nodeName", &["spec.nodeName"], ""),
            spec("source", &["source.component", "reportingComponent"], ""),
            spec("n", &["status.n"], "0"),
            spec("b", &["spec.b"], "false"),
        ]);
        let facts = |json: &str| {
            scan(json.as_bytes(), &plan).map(|f| {
                let labels: Vec<_> = f.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
                (labels.join(","), f.fields.join("|"))
            })
        };
        for (json, labels, fields) in [
            ("{}", "", "||0|false"),
            (r#"{"metadata":{}}"#, "", "||0|false"),
            (
                r#"{"metadata":{"labels":{"b":"2","a":"1"},"name":"x"},"spec":{"nodeName":"n1","b":true},"status":{"n":3}}"#,
                "a=1,b=2",
                "n1||3|true",
            ),
            // The first path that leads to something wins, in whichever order they stand.
            (
                r#"{"reportingComponent":"r","source":{"component":"c"}}"#,
                "",
                "|c|0|false",
            ),
            (
                r#"{"source":{"component":""},"reportingComponent":"r"}"#,
                "",
                "|r|0|false",
            ),
            // Look-alikes deeper down, in arrays and in strings are not meant.
            (
                r#"{"a":{"spec":{"nodeName":"no"}},"b":[{"spec":{"nodeName":"no"}},"}"],"c":"{\"spec\":{\"nodeName\":\"no\"}}","spec":{"nodeName":"y\\\"\u00e9"}}"#,
                "",
                "y\\\"é||0|false",
            ),
            // Other types where scalars and objects are expected.
            (
                r#"{"metadata":{"labels":null},"spec":[],"status":{"n":{}}}"#,
                "",
                "||0|false",
            ),
            (
                r#"{"metadata":{"labels":{"a":1,"b":"x"}},"spec":null}"#,
                "b=x",
                "||0|false",
            ),
            (
                " { \"spec\" : { \"nodeName\" : \"n\" } , \"z\" : [ 1 , -2.5e3 ] } ",
                "",
                "n||0|false",
            ),
        ] {
            let expected = Ok((labels.to_owned(), fields.to_owned()));
            assert_eq!(facts(json), expected, "{json}");
        }
        for bad in [
            "",
            "[]",
            "null",
            "{",
            r#"{"a""#,
            r#"{"a":}"#,
            r#"{"a":1"#,
            r#"{"a":1,}"#,
            "{}x",
            r#"{"a":"b}"#,
            r#"{"a":]}"#,
            r#"{"metadata":{"labels":{"a":"\u12"}}}"#,
            r#"{"a":1 2}"#,
            "{\"a\":\"\\",
        ] {
            assert!(facts(bad).is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        /// Whatever the bytes, a scan ends without a panic; and what serde_json accepts as an object, it accepts.
        #[test]
        fn never_panics(text in "[\\[\\]{}\",:\\\\ a1nu]{0,40}") {
            let plan = Plan::new(&[spec("a", &["a.a", "n"], "")]);
            let found = scan(text.as_bytes(), &plan);
            let object = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&text);
            proptest::prop_assert!(found.is_ok() || object.is_err(), "{text}");
        }
    }
}
