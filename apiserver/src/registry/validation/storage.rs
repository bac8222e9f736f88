//! Volumes, claims and their paths.

use keelson_machinery::quantity::Quantity;
use keelson_machinery::status::field::{FieldError, Path};
use keelson_machinery::value::{self, Value};

use super::{At, Found, has, text};

/// Upstream `validatePathNoBacksteps`.
fn no_backsteps(given: &str, path: &Path, found: &mut Found) {
    if given.split('/').any(|part| part == "..") {
        found.push(FieldError::invalid(path, given, "must not contain '..'"));
    }
}

/// Upstream `validateLocalDescendingPath`; nothing is such a path too.
pub fn descending_path(given: &str, path: &Path, found: &mut Found) {
    if given.starts_with('/') {
        found.push(FieldError::invalid(path, given, "must be a relative path"));
    }
    no_backsteps(given, path, found);
}

/// Upstream `ValidateLocalNonReservedPath`.
pub fn key_to_path(item: &Value, at: &At<'_>, found: &mut Found) {
    let (given, path) = (text(item, "path"), at.child("path"));
    descending_path(given, &path, found);
    if given.starts_with("..") && !given.starts_with("../") && given != ".." {
        found.push(FieldError::invalid(
            &path,
            given,
            "must not start with '..'",
        ));
    }
}

/// A path on the node stays where it says.
pub fn host_path(source: &Value, at: &At<'_>, found: &mut Found) {
    no_backsteps(text(source, "path"), &at.child("path"), found);
}

/// `validateVolumeSource`: one source for each volume.
pub fn volume(volume: &Value, at: &At<'_>, found: &mut Found) {
    let mut sources: Vec<&str> = volume
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, member)| *name != "name" && !member.is_null())
        .map(|(name, _)| name.as_str())
        .collect();
    // Upstream looks for an empty directory first.
    sources.sort_by_key(|name| *name != "emptyDir");
    match sources.split_first() {
        None => found.push(FieldError::required(
            &at.path(),
            "must specify a volume type",
        )),
        Some((_, more)) => {
            for name in more {
                found.push(FieldError::forbidden(
                    &at.child(name),
                    "may not specify more than 1 volume type",
                ));
            }
        }
    }
    let limit = value::get_str(volume, &["emptyDir", "sizeLimit"]);
    if limit
        .and_then(|text| Quantity::parse(text).ok())
        .is_some_and(|q| q.sign() < 0)
    {
        found.push(FieldError::forbidden(
            &at.child("emptyDir.sizeLimit"),
            "SizeLimit field must be a valid resource quantity",
        ));
    }
}

const ACCESS_MODES: &[&str] = &[
    "ReadOnlyMany",
    "ReadWriteMany",
    "ReadWriteOnce",
    "ReadWriteOncePod",
];

fn access_modes(spec: &Value, path: &Path, found: &mut Found) {
    let modes = value::items(spec, &["accessModes"]);
    let mut alone = false;
    let mut shared = false;
    for mode in modes.iter().filter_map(Value::as_str) {
        if !ACCESS_MODES.contains(&mode) {
            found.push(FieldError::not_supported(path, mode, ACCESS_MODES));
        } else if mode == "ReadWriteOncePod" {
            alone = true;
        } else {
            shared = true;
        }
    }
    if alone && shared {
        found.push(FieldError::forbidden(
            path,
            "may not use ReadWriteOncePod with other access modes",
        ));
    }
}

fn positive(amount: &str, path: &Path, found: &mut Found) {
    if Quantity::parse(amount).is_ok_and(|quantity| quantity.sign() <= 0) {
        found.push(FieldError::invalid(
            path,
            amount,
            "must be greater than zero",
        ));
    }
}

/// `ValidatePersistentVolumeClaimSpec`.
pub fn claim_spec(spec: &Value, at: &At<'_>, found: &mut Found) {
    access_modes(spec, &at.child("accessModes"), found);
    let path = at.child("resources").key("storage");
    match value::get_str(spec, &["resources", "requests", "storage"]) {
        None => found.push(FieldError::required(&path, "")),
        Some(amount) => positive(amount, &path, found),
    }
}

/// Members of a volume's spec that are no source.
const NO_SOURCE: &[&str] = &[
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];

/// `ValidatePersistentVolume`.
pub fn persistent_volume(volume: &Value, at: &At<'_>, found: &mut Found) {
    let path = at.child("spec");
    let Some(spec) = value::get(volume, &["spec"]) else {
        return;
    };
    access_modes(spec, &path.child("accessModes"), found);
    let capacity = path.child("capacity");
    for (name, amount) in value::get_object(spec, &["capacity"]).into_iter().flatten() {
        positive(
            amount.as_str().unwrap_or_default(),
            &capacity.key(name),
            found,
        );
    }
    if has(spec, "capacity") && value::get(spec, &["capacity", "storage"]).is_none() {
        found.push(FieldError::not_supported(
            &capacity,
            value::get(spec, &["capacity"]).cloned().unwrap_or_default(),
            &["storage"],
        ));
    }
    let sources: Vec<&str> = spec
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, member)| !NO_SOURCE.contains(&name.as_str()) && !member.is_null())
        .map(|(name, _)| name.as_str())
        .collect();
    match sources.split_first() {
        None => found.push(FieldError::required(&path, "must specify a volume type")),
        Some((_, more)) => {
            for name in more {
                found.push(FieldError::forbidden(
                    &path.child(name),
                    "may not specify more than 1 volume type",
                ));
            }
        }
    }
    if value::get_str(spec, &["hostPath", "path"]) == Some("/")
        && text(spec, "persistentVolumeReclaimPolicy") == "Recycle"
    {
        found.push(FieldError::forbidden(
            &path.child("persistentVolumeReclaimPolicy"),
            "may not be 'recycle' for a hostPath mount of '/'",
        ));
    }
    if has(spec, "local") && !has(spec, "nodeAffinity") {
        found.push(FieldError::required(
            &path.child("nodeAffinity"),
            "Local volume requires node affinity",
        ));
    }
}
