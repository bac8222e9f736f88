//! CustomResourceDefinitions of `apiextensions.k8s.io/v1beta1`, which upstream still writes to the store because that
//! form says what all versions share only once (`Convert_v1beta1_CustomResourceDefinitionSpec_To_apiextensions_...`).

use keelson_machinery::value::{self, Object, Value};
use serde_json::json;

/// Turns a definition into `v1`, but for `apiVersion`.
pub fn from_v1beta1(object: &mut Value) {
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else {
        return;
    };
    let first = spec.remove("version");
    let shared = [
        ("schema", spec.remove("validation")),
        ("subresources", spec.remove("subresources")),
        (
            "additionalPrinterColumns",
            spec.remove("additionalPrinterColumns"),
        ),
    ];
    let versions = spec.entry("versions").or_insert(Value::Null);
    if versions.as_array().is_none_or(Vec::is_empty) {
        *versions = match first {
            Some(name) => json!([{"name": name, "served": true, "storage": true}]),
            None => json!([]),
        };
    }
    let versions = versions.as_array_mut().into_iter().flatten();
    for version in versions.filter_map(Value::as_object_mut) {
        for (name, shared) in &shared {
            let own = version.get(*name).is_some_and(|own| !own.is_null());
            if let (false, Some(shared)) = (own, shared) {
                version.insert((*name).to_owned(), shared.clone());
            }
        }
        rename_paths(version);
    }
    if let Some(conversion) = spec.get_mut("conversion").and_then(Value::as_object_mut) {
        turn_conversion(conversion);
    }
    value::remove(object, &["metadata", "selfLink"]);
}

/// The path of a printer column has another spelling.
fn rename_paths(version: &mut Object) {
    let columns = version.get_mut("additionalPrinterColumns");
    let columns = columns.and_then(Value::as_array_mut).into_iter().flatten();
    for column in columns.filter_map(Value::as_object_mut) {
        if let Some(path) = column.remove("JSONPath") {
            column.insert("jsonPath".to_owned(), path);
        }
    }
}

/// What concerns webhooks stands together.
fn turn_conversion(conversion: &mut Object) {
    let client = conversion.remove("webhookClientConfig");
    let versions = conversion.remove("conversionReviewVersions");
    if conversion.get("strategy").and_then(Value::as_str) != Some("Webhook") {
        return;
    }
    let mut webhook = Object::new();
    for (name, member) in [
        ("clientConfig", client),
        ("conversionReviewVersions", versions),
    ] {
        if let Some(member) = member.filter(|member| !member.is_null()) {
            webhook.insert(name.to_owned(), member);
        }
    }
    conversion.insert("webhook".to_owned(), Value::Object(webhook));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_versions_share_goes_to_each() {
        let mut object = json!({"spec": {
            "group": "g", "version": "v1",
            "validation": {"openAPIV3Schema": {"type": "object"}},
            "additionalPrinterColumns": [{"name": "A", "type": "string", "JSONPath": ".a"}],
            "versions": [
                {"name": "v1", "served": true, "storage": true},
                {"name": "v2", "served": true, "storage": false, "schema": {"openAPIV3Schema": {"type": "array"}}},
            ],
            "conversion": {"strategy": "Webhook", "webhookClientConfig": {"url": "u"}, "conversionReviewVersions": ["v1"]},
        }});
        from_v1beta1(&mut object);
        let columns = json!([{"name": "A", "type": "string", "jsonPath": ".a"}]);
        assert_eq!(
            object,
            json!({"spec": {
                "group": "g",
                "versions": [
                    {"name": "v1", "served": true, "storage": true,
                        "schema": {"openAPIV3Schema": {"type": "object"}}, "additionalPrinterColumns": columns},
                    {"name": "v2", "served": true, "storage": false,
                        "schema": {"openAPIV3Schema": {"type": "array"}}, "additionalPrinterColumns": columns},
                ],
                "conversion": {"strategy": "Webhook",
                    "webhook": {"clientConfig": {"url": "u"}, "conversionReviewVersions": ["v1"]}},
            }})
        );
        let mut only = json!({"spec": {"version": "v1", "conversion": {"strategy": "None"}}});
        from_v1beta1(&mut only);
        assert_eq!(
            only,
            json!({"spec": {"versions": [{"name": "v1", "served": true, "storage": true}],
                "conversion": {"strategy": "None"}}})
        );
    }
}
