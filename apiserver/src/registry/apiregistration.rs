//! APIServices: named by what they serve, and available at once when this server serves it
//! (upstream `kube-aggregator/pkg/registry/apiservice`).

use keelson_machinery::catalog::Resource;
use keelson_machinery::meta::{self, NameRule, names};
use keelson_machinery::status::field::{FieldError, Path};
use keelson_machinery::value::{self, Value};
use serde_json::json;

use super::generic;
use super::strategy::{Context, Strategy};
use crate::aggregation::available::{Verdict, set_condition};

/// Strategy of APIServices.
pub struct ApiService;

impl Strategy for ApiService {
    fn prepare_for_create(&self, context: &Context<'_>, object: &mut Value) {
        generic::prepare_for_create(context, object);
        value::set(object, &["status"], json!({}));
        if value::get(object, &["spec", "service"]).is_none() {
            set_condition(object, &Verdict::local(), context.clock.now());
        }
    }

    fn name_rule(&self, _: &Resource) -> NameRule {
        names::path_segment
    }

    fn validate(&self, context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut found = super::validation::object(object, context.served.storage_type);
        found.extend(validate(object));
        found
    }

    fn validate_update(&self, context: &Context<'_>, object: &Value, _: &Value) -> Vec<FieldError> {
        if context.subresource != "status" {
            return self.validate(context, object);
        }
        let conditions = Path::new("status").child("conditions");
        let all = value::items(object, &["status", "conditions"]).iter();
        all.enumerate()
            .filter_map(|(index, condition)| {
                let status = value::str_or_empty(condition, &["status"]);
                let known = ["True", "False", "Unknown"];
                (!known.contains(&status)).then(|| {
                    FieldError::not_supported(
                        &conditions.index(index).child("status"),
                        status,
                        &known,
                    )
                })
            })
            .collect()
    }
}

/// `ValidateAPIService`.
fn validate(object: &Value) -> Vec<FieldError> {
    let mut found = Vec::new();
    let spec = Path::new("spec");
    let text = |field| value::str_or_empty(object, &["spec", field]);
    let (group, version, name) = (text("group"), text("version"), meta::name(object));
    let wanted = format!("{version}.{group}");
    if names::path_segment(name, false).is_empty() && name != wanted {
        found.push(FieldError::invalid(
            &Path::new("metadata").child("name"),
            name,
            format!("must be `spec.version+\".\"+spec.group`: {wanted:?}"),
        ));
    }
    if group.is_empty() && version != "v1" {
        found.push(FieldError::required(
            &spec.child("group"),
            "only v1 may have an empty group and it better be legacy kube",
        ));
    }
    let mut each = |field: &str, text: &str, errors: Vec<String>| {
        let path = spec.child(field);
        found.extend(
            errors
                .into_iter()
                .map(|why| FieldError::invalid(&path, text, why)),
        );
    };
    if !group.is_empty() {
        each("group", group, names::dns1123_subdomain(group));
    }
    each("version", version, names::dns1035_label(version));
    for (field, most) in [("groupPriorityMinimum", 20000), ("versionPriority", 1000)] {
        let priority = value::get_i64(object, &["spec", field]).unwrap_or_default();
        if !(1..=most).contains(&priority) {
            found.push(FieldError::invalid(
                &spec.child(field),
                priority,
                format!("must be positive and less than {most}"),
            ));
        }
    }
    let insecure = value::get_bool(object, &["spec", "insecureSkipTLSVerify"]) == Some(true);
    let bundle = text("caBundle");
    let Some(service) = value::get(object, &["spec", "service"]) else {
        if !bundle.is_empty() {
            let bytes = bundle.trim_end_matches('=').len() * 3 / 4;
            found.push(FieldError::invalid(
                &spec.child("caBundle"),
                format!("{bytes} bytes"),
                "local APIServices may not have a caBundle",
            ));
        }
        if insecure {
            found.push(FieldError::invalid(
                &spec.child("insecureSkipTLSVerify"),
                true,
                "local APIServices may not have insecureSkipTLSVerify",
            ));
        }
        return found;
    };
    let of_service = spec.child("service");
    for field in ["namespace", "name"] {
        if value::str_or_empty(service, &[field]).is_empty() {
            found.push(FieldError::required(&of_service.child(field), ""));
        }
    }
    let port = value::get_i64(service, &["port"]).unwrap_or(443);
    if !(1..=65535).contains(&port) {
        found.push(FieldError::invalid(
            &of_service.child("port"),
            port,
            "port is not valid: must be between 1 and 65535, inclusive",
        ));
    }
    if insecure && !bundle.is_empty() {
        found.push(FieldError::invalid(
            &spec.child("insecureSkipTLSVerify"),
            true,
            "may not be true if caBundle is present",
        ));
    }
    found
}
