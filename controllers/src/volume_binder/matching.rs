//! Which volume fits which claim (upstream `component-helpers/storage/volume`). No I/O.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as WireQuantity;
use keelson_machinery::quantity::Quantity;

use crate::common::{Selector, annotations, labels, name, namespace, uid};

/// The older form of a class's name on claims and volumes.
const CLASS: &str = "volume.beta.kubernetes.io/storage-class";
/// Marks the class of claims that name none.
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
/// Where the scheduler wants the first consumer of a claim.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";

/// The class that a claim asks for; none and the empty one are the same here.
pub fn claim_class(claim: &PersistentVolumeClaim) -> &str {
    let spec = claim.spec.as_ref();
    annotations(&claim.metadata)
        .get(CLASS)
        .or_else(|| spec.and_then(|s| s.storage_class_name.as_ref()))
        .map(String::as_str)
        .unwrap_or_default()
}

/// Whether a claim says nothing of a class, so that it gets the default one.
pub fn wants_default_class(claim: &PersistentVolumeClaim) -> bool {
    !annotations(&claim.metadata).contains_key(CLASS)
        && claim
            .spec
            .as_ref()
            .is_none_or(|s| s.storage_class_name.is_none())
}

/// The class of a volume.
fn volume_class(volume: &PersistentVolume) -> &str {
    let spec = volume.spec.as_ref();
    annotations(&volume.metadata)
        .get(CLASS)
        .or_else(|| spec.and_then(|s| s.storage_class_name.as_ref()))
        .map(String::as_str)
        .unwrap_or_default()
}

/// The newest of the default classes (upstream `GetDefaultClass`).
pub fn default_class(classes: &[Arc<StorageClass>]) -> Option<&str> {
    classes
        .iter()
        .filter(|c| {
            annotations(&c.metadata)
                .get(DEFAULT_CLASS)
                .is_some_and(|v| v == "true")
        })
        .min_by_key(|c| {
            let made = c.metadata.creation_timestamp.as_ref().map(|t| t.0);
            (std::cmp::Reverse(made), name(&c.metadata))
        })
        .map(|c| name(&c.metadata))
}

/// Whether claims of the class wait for a pod that uses them.
pub fn waits_for_consumer(class: Option<&StorageClass>) -> bool {
    class.and_then(|c| c.volume_binding_mode.as_deref()) == Some("WaitForFirstConsumer")
}

fn bytes(amount: Option<&WireQuantity>) -> i64 {
    amount
        .and_then(|q| Quantity::parse(&q.0).ok())
        .map_or(0, |q| q.value())
}

fn asked(claim: &PersistentVolumeClaim) -> i64 {
    let requests = claim
        .spec
        .as_ref()
        .and_then(|s| s.resources.as_ref()?.requests.as_ref());
    bytes(requests.and_then(|r| r.get("storage")))
}

fn capacity(volume: &PersistentVolume) -> i64 {
    let all = volume.spec.as_ref().and_then(|s| s.capacity.as_ref());
    bytes(all.and_then(|c| c.get("storage")))
}

fn mode(text: Option<&str>) -> &str {
    text.unwrap_or("Filesystem")
}

/// Whether one is a file system and the other is not.
pub fn modes_differ(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let of_claim = claim.spec.as_ref().and_then(|s| s.volume_mode.as_deref());
    let of_volume = volume.spec.as_ref().and_then(|s| s.volume_mode.as_deref());
    mode(of_claim) != mode(of_volume)
}

fn attributes_differ(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let of_claim = claim
        .spec
        .as_ref()
        .and_then(|s| s.volume_attributes_class_name.as_deref());
    let of_volume = volume
        .spec
        .as_ref()
        .and_then(|s| s.volume_attributes_class_name.as_deref());
    of_claim.unwrap_or_default() != of_volume.unwrap_or_default()
}

fn has_access_modes(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let wanted = claim
        .spec
        .iter()
        .flat_map(|s| s.access_modes.iter().flatten());
    let offered: Vec<_> = volume
        .spec
        .iter()
        .flat_map(|s| s.access_modes.iter().flatten())
        .collect();
    wanted.into_iter().all(|m| offered.contains(&m))
}

/// The claim that a volume is bound or promised to.
pub fn claim_ref(volume: &PersistentVolume) -> Option<&ObjectReference> {
    volume.spec.as_ref()?.claim_ref.as_ref()
}

/// Whether a volume is promised to this claim: by name, and by uid if it has one (upstream `IsVolumeBoundToClaim`).
pub fn is_promised(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    claim_ref(volume).is_some_and(|r| {
        let of = |text: &Option<String>| text.clone().unwrap_or_default();
        of(&r.name) == name(&claim.metadata)
            && of(&r.namespace) == namespace(&claim.metadata)
            && (of(&r.uid).is_empty() || of(&r.uid) == uid(&claim.metadata))
    })
}

/// Why a claim that names this volume cannot have it (upstream `checkVolumeSatisfyClaim`).
pub fn mismatch(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<String> {
    if volume.metadata.deletion_timestamp.is_some() {
        let own = name(&volume.metadata);
        return Some(format!("the volume is marked for deletion {own:?}"));
    }
    let why = if capacity(volume) < asked(claim) {
        "requested PV is too small"
    } else if volume_class(volume) != claim_class(claim) {
        "storageClassName does not match"
    } else if attributes_differ(claim, volume) {
        "volumeAttributesClassName does not match"
    } else if modes_differ(claim, volume) {
        "incompatible volumeMode"
    } else if !has_access_modes(claim, volume) {
        "incompatible accessMode"
    } else {
        return None;
    };
    Some(why.to_owned())
}

/// The volume for a claim: one that is promised to it, or else the smallest that fits. With `only_promised`, the latter is left to
/// the scheduler (upstream `FindMatchingVolume`).
///
/// # Errors
/// A selector that is none.
pub fn best<'a>(
    claim: &PersistentVolumeClaim,
    volumes: &'a [Arc<PersistentVolume>],
    only_promised: bool,
) -> Result<Option<&'a Arc<PersistentVolume>>, String> {
    let selector = match claim.spec.as_ref().and_then(|s| s.selector.as_ref()) {
        Some(selector) => Some(Selector::new(selector)?),
        None => None,
    };
    let mut best: Option<&Arc<PersistentVolume>> = None;
    let order = |v: &PersistentVolume| (capacity(v), name(&v.metadata).to_owned());
    for volume in volumes {
        let promised = is_promised(volume, claim);
        if (claim_ref(volume).is_some() && !promised)
            || modes_differ(claim, volume)
            || attributes_differ(claim, volume)
            || volume.metadata.deletion_timestamp.is_some()
        {
            continue;
        }
        if promised {
            if capacity(volume) >= asked(claim) {
                return Ok(Some(volume));
            }
            continue;
        }
        let available =
            volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Available");
        let selected = selector
            .as_ref()
            .is_none_or(|s| s.matches(labels(&volume.metadata)));
        if only_promised
            || !available
            || !selected
            || volume_class(volume) != claim_class(claim)
            || !has_access_modes(claim, volume)
            || capacity(volume) < asked(claim)
        {
            continue;
        }
        if best.is_none_or(|b| order(volume) < order(b)) {
            best = Some(volume);
        }
    }
    Ok(best)
}
