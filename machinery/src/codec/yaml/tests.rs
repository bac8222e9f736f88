//! YAML as upstream reads it.

use serde_json::json;

use super::*;
use crate::schema::Schema;

fn read(text: &str) -> Value {
    decode_any(text.as_bytes(), Strictness::Lenient)
        .unwrap_or_else(|e| panic!("{text}: {e}"))
        .0
}

#[test]
fn scalars_mean_what_go_yaml_says() {
    for (text, want) in [
        ("yes", json!(true)),
        ("Off", json!(false)),
        ("'yes'", json!("yes")),
        ("~", json!(null)),
        ("010", json!(8)),
        ("0o17", json!(15)),
        ("0x1F", json!(31)),
        ("08", json!(8)),
        ("1_000", json!(1000)),
        ("+5", json!(5)),
        ("1.5", json!(1.5)),
        ("1e3", json!(1000)),
        ("1.", json!(1)),
        ("12:30:45", json!("12:30:45")),
        ("2020-01-02", json!("2020-01-02")),
        ("1.2.3", json!("1.2.3")),
        ("!!str 5", json!("5")),
        ("9223372036854775807", json!(i64::MAX)),
        ("-", json!([null])),
        ("", json!(null)),
    ] {
        assert_eq!(read(text), want, "{text:?}");
    }
}

#[test]
fn structure() {
    assert_eq!(
        read("a: &x {b: 1}\nc:\n  <<: *x\n  d: 2\n1: one\ntrue: t\n---\nsecond: 1\n"),
        json!({"a": {"b": 1}, "c": {"b": 1, "d": 2}, "1": "one", "true": "t"})
    );
    assert_eq!(read("{\"a\": [1, 2]}"), json!({"a": [1, 2]}));
}

#[test]
fn errors_and_duplicates() {
    let pod = Schema::builtin()
        .lookup("io.k8s.api.core.v1.Pod")
        .expect("Pod");
    let text = "kind: Pod\nmetadata:\n  name: a\n  name: b\nfoo: 1\n";
    let (value, strict) = decode(text.as_bytes(), pod, Strictness::Strict).expect("decodes");
    assert_eq!(value["metadata"]["name"], "b");
    assert_eq!(
        crate::codec::strict_message(&strict),
        "strict decoding error: yaml: unmarshal errors:\n  line 4: key \"name\" already set in map, unknown field \"foo\""
    );
    for bad in ["a: b: c", "a: [1", "a: *nope", "%", "a: !!int x"] {
        let error = decode_any(bad.as_bytes(), Strictness::Lenient).expect_err(bad);
        assert!(error.to_string().starts_with("yaml: "), "{bad}: {error}");
    }
    // The billion laughs.
    let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for i in 1..10 {
        let items = vec![format!("*a{}", i - 1); 10].join(",");
        bomb.push_str(&format!("a{i}: &a{i} [{items}]\n"));
    }
    let error = decode_any(bomb.as_bytes(), Strictness::Lenient).expect_err("a bomb");
    assert_eq!(
        error.to_string(),
        "yaml: document contains excessive aliasing"
    );
    let deep = "[".repeat(100_000);
    assert!(decode_any(deep.as_bytes(), Strictness::Lenient).is_err());
}

#[test]
fn aliases_make_nothing_that_could_not_be_written_out() {
    let refusal = |text: &str| {
        let read = decode_any(text.as_bytes(), Strictness::Lenient);
        read.err().map(|error| error.to_string())
    };
    // Each anchor holds the one before, a hundred levels further down.
    let nested = |links: usize| {
        let mut text = String::from("- &a0 x\n");
        for link in 1..=links {
            let (open, close) = ("[".repeat(100), "]".repeat(100));
            text.push_str(&format!("- &a{link} {open}*a{}{close}\n", link - 1));
        }
        text
    };
    assert_eq!(refusal(&nested(1)), None);
    for links in [2, 100] {
        assert_eq!(
            refusal(&nested(links)),
            Some("yaml: exceeded max depth".to_owned())
        );
    }
    let excessive = Some("yaml: document contains excessive aliasing".to_owned());
    // Long texts count as well as many nodes.
    let long = format!("- &a {}\n{}", "x".repeat(1 << 20), "- *a\n".repeat(20));
    assert_eq!(refusal(&long), excessive);
    // So do anchors alone: what has one is kept beside the document.
    let mut anchored = String::new();
    for level in 0..100 {
        anchored.push_str(&format!("[&a{level} "));
    }
    anchored.push_str(&"x".repeat(1 << 20));
    anchored.push_str(&"]".repeat(100));
    assert_eq!(refusal(&anchored), excessive);
}

#[test]
fn what_is_written_is_read_back() {
    let value = json!({
        "plain": "a b", "empty": "", "bool": "yes", "number": "1e3", "colon": "a: b", "hash": "a #b", "dash": "- a",
        "lines": "one\n two\n\nthree\n", "open": "a\nb", "kept": "a\n\n", "blank": "\n a", "tab": "a\tb", "unicode": "é\u{1F600}\u{7f}",
        "list": [[1, [2]], {"a": [], "b": {}}, null, "x"], "nested": {"deep": {"deeper": [{"k": "v", "l": 1.5}]}},
        "yes": 1, "a: b": 2, "": 3, "trail ": "x ", "~": "~", "date": "2020-01-02", "t": true
    });
    let text = encode(&value);
    let back = decode_any(&text, Strictness::Strict).unwrap_or_else(|e| panic!("{e}: {text:?}"));
    assert_eq!(back, (value, vec![]), "{}", String::from_utf8_lossy(&text));
}
