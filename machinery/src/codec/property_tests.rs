//! Properties over all types: what is filled at random survives every codec, and no bytes make a decoder panic.

use proptest::prelude::*;
use serde_json::json;

use super::{Strictness, json, protobuf, yaml};
use crate::schema::{Cardinality, Kind, Schema, Type};
use crate::value::{Object, Value};

/// A small generator of repeatable numbers (Knuth's MMIX constants).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.roll(from.len() as u64) as usize].clone()
    }

    fn object(&mut self, of: &'static Type, depth: usize) -> Value {
        let mut out = Object::new();
        for field in of.fields() {
            if self.roll(3) == 0 {
                continue;
            }
            let count = self.roll(3);
            let value = match field.cardinality {
                Cardinality::Optional => self.value(field.kind, depth),
                Cardinality::Repeated => {
                    (0..count).map(|_| self.value(field.kind, depth)).collect()
                }
                Cardinality::Map => Value::Object(
                    (0..count)
                        .map(|i| (format!("key-{i}"), self.value(field.kind, depth)))
                        .collect(),
                ),
            };
            out.insert(field.json_name.to_string(), value);
        }
        Value::Object(out)
    }

    fn value(&mut self, kind: Kind, depth: usize) -> Value {
        match kind {
            Kind::String => self.pick(&[
                json!(""),
                json!("a"),
                json!("é<&>\u{2028}\"\\\n"),
                json!(null),
            ]),
            Kind::Bool => self.pick(&[json!(true), json!(false), json!(null)]),
            Kind::Int32 => self.pick(&[
                json!(0),
                json!(1),
                json!(i32::MIN),
                json!(i32::MAX),
                json!(null),
            ]),
            Kind::Int64 => self.pick(&[json!(0), json!(-1), json!(i64::MIN), json!(i64::MAX)]),
            Kind::Double => self.pick(&[
                json!(0),
                json!(1.0),
                json!(-0.25),
                json!(1e300),
                json!(1e-300),
            ]),
            Kind::Bytes => self.pick(&[json!(""), json!("AA=="), json!("AP/+"), json!(null)]),
            Kind::Quantity => self.pick(&[
                json!("0"),
                json!(1),
                json!("1500m"),
                json!("1Gi"),
                json!("0.5"),
                json!("1000"),
            ]),
            Kind::IntOrString => {
                self.pick(&[json!(0), json!(80), json!("http"), json!(""), json!("50%")])
            }
            Kind::Time => self.pick(&[
                json!(null),
                json!("2020-02-29T12:00:00Z"),
                json!("1969-12-31T23:59:59+01:00"),
            ]),
            Kind::MicroTime => self.pick(&[
                json!(null),
                json!("2020-02-29T12:00:00.123456Z"),
                json!("2020-02-29T12:00:00.000000Z"),
            ]),
            Kind::Duration => self.pick(&[json!("0s"), json!("1h"), json!("1.5s"), json!("90m")]),
            Kind::RawExtension | Kind::FieldsV1 => {
                self.pick(&[json!(null), json!({}), json!({"z": 1, "a": {"<": []}})])
            }
            Kind::Json => self.pick(&[
                json!(null),
                json!({}),
                json!([1, "x", null]),
                json!("text"),
                json!(false),
            ]),
            _ if depth == 0 => Value::Null,
            Kind::Message(of) => self.object(of, depth - 1),
            Kind::Items(of) => match of.wire_fields().first() {
                Some(list) => (0..self.roll(3))
                    .map(|_| self.value(list.kind, depth - 1))
                    .collect(),
                None => Value::Null,
            },
            Kind::SchemaOrArray(of) | Kind::SchemaOrBool(of) | Kind::SchemaOrStrings(of) => {
                let schema = of.wire_fields().iter().find_map(|f| f.kind.message());
                match (kind, self.roll(2), schema) {
                    (Kind::SchemaOrBool(_), 0, _) => json!(true),
                    (Kind::SchemaOrArray(_), 0, _) => json!([{}, {"type": "string"}]),
                    (Kind::SchemaOrStrings(_), 0, _) => json!(["a", "b"]),
                    (_, _, Some(schema)) => self.object(schema, depth - 1),
                    _ => Value::Null,
                }
            }
        }
    }
}

#[test]
fn random_objects_of_every_type_survive() {
    for (index, of) in Schema::builtin().types().iter().enumerate() {
        // Types that are no object in JSON are met inside of others.
        let special = [
            "Quantity",
            "Time",
            "JSON",
            "FieldsV1",
            "RawExtension",
            "IntOrString",
            "ExtraValue",
            "Verbs",
            "Duration",
            "MicroTime",
        ];
        if special.contains(&of.short_name()) || of.short_name().starts_with("JSONSchemaPropsOr") {
            continue;
        }
        for round in 0..2 {
            let mut dice = Dice(index as u64 * 31 + round);
            let wild = dice.object(of, 3);
            let context = || format!("{of:?}: {wild}");
            let (value, strict) = json::decode_value(&wild, of, Strictness::Strict)
                .unwrap_or_else(|e| panic!("{e}: {}", context()));
            assert_eq!(strict, vec![], "{}", context());
            // Decoding is idempotent, and agrees with the normal form.
            let again = json::decode_value(&value, of, Strictness::Strict).map(|d| d.0);
            assert_eq!(again.as_ref(), Ok(&value), "{}", context());
            let mut normal = value.clone();
            crate::schema::normalize(&mut normal, of);
            assert_eq!(normal, value, "{}", context());
            // YAML.
            let (back, _) = yaml::decode(&yaml::encode(&value), of, Strictness::Strict)
                .unwrap_or_else(|e| panic!("{e}: {}", context()));
            assert_eq!(back, value, "{}", context());
            // Protobuf.
            let bytes =
                protobuf::encode(&value, of).unwrap_or_else(|e| panic!("{e}: {}", context()));
            let back =
                protobuf::decode(&bytes, of).unwrap_or_else(|e| panic!("{e}: {}", context()));
            let mut want = value.clone();
            crate::schema::settle(&mut want, of);
            assert_eq!(back, want, "{}", context());
            assert_eq!(
                protobuf::encode(&back, of).as_ref(),
                Ok(&bytes),
                "{}",
                context()
            );
        }
    }
}

fn pod() -> &'static Type {
    Schema::builtin()
        .lookup("io.k8s.api.core.v1.Pod")
        .expect("Pod")
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = json::decode(&bytes, pod(), Strictness::Strict);
        let _ = json::type_meta(&bytes);
        let _ = yaml::decode_any(&bytes, Strictness::Strict);
        let _ = protobuf::decode(&bytes, pod());
        let _ = protobuf::decode_unknown(&bytes);
    }

    #[test]
    fn no_text_makes_a_decoder_panic(text in "[\\[\\]{}:,\"'a-e0-9\\\\u\\-+.\\s&*!|>#%@`<é\u{7f}]{0,60}") {
        let _ = json::decode(text.as_bytes(), pod(), Strictness::Strict);
        let _ = yaml::decode(text.as_bytes(), pod(), Strictness::Strict);
    }

    /// A broken object: a few bytes of a good one changed.
    #[test]
    fn no_damage_makes_a_decoder_panic(seed in any::<u64>(), damage in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..4)) {
        let value = Dice(seed).object(pod(), 3);
        let (value, _) = json::decode_value(&value, pod(), Strictness::Lenient).expect("decodes");
        let mut text = json::encode(&value).to_vec();
        let mut wire = protobuf::encode(&value, pod()).expect("encodes").to_vec();
        for (at, byte) in damage {
            let at = usize::from(at);
            let (text_len, wire_len) = (text.len(), wire.len());
            text[at % text_len] = byte;
            wire[at % wire_len] = byte;
        }
        let _ = json::decode(&text, pod(), Strictness::Strict);
        let _ = yaml::decode_any(&text, Strictness::Strict);
        if let Ok(value) = protobuf::decode(&wire, pod()) {
            let _ = protobuf::encode(&value, pod());
        }
    }

    #[test]
    fn yaml_text_survives(text in any::<String>()) {
        let value = json!({"k": text, "l": [text], text.clone(): 1});
        let written = yaml::encode(&value);
        let (back, _) = yaml::decode_any(&written, Strictness::Strict)
            .unwrap_or_else(|e| panic!("{e}: {written:?}"));
        prop_assert_eq!(back, value);
    }

    #[test]
    fn json_text_survives(text in any::<String>(), number in any::<f64>(), int in any::<i64>()) {
        prop_assume!(number.is_finite());
        let value = json!({"k": text, text.clone(): int});
        let (back, _) = json::decode_any(&json::encode(&value), Strictness::Strict).expect("decodes");
        prop_assert_eq!(back, value);
        // Whole floats become integers, so the numbers are compared, not the values.
        let (back, _) = json::decode_any(&json::encode(&json!(number)), Strictness::Strict).expect("decodes");
        prop_assert_eq!(back.as_f64(), Some(number));
    }
}
