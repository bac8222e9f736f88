//! What to do about one claim or one volume (upstream `syncClaim` and `syncVolume`). No I/O.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;

use super::matching::{
    SELECTED_NODE, best, claim_class, claim_ref, default_class, is_promised, mismatch,
    modes_differ, waits_for_consumer, wants_default_class,
};
use crate::common::{annotations, name, uid};

/// On claims: the binding is complete.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// On claims and volumes: we made this binding, not a user.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// On volumes: who provisioned them.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// What a class says when its volumes are made by hand.
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

/// An event: whether a warning, reason, message.
pub type Note = (bool, &'static str, String);

/// What to do about a claim.
#[derive(Debug, PartialEq)]
pub enum ClaimStep {
    /// It is in this phase, whatever volume it has.
    Phase(&'static str, Option<Note>),
    /// It gets this volume; what of the binding is written already stays.
    Bind(Arc<PersistentVolume>),
    /// It gets this class.
    AssignClass(String),
    /// Somebody outside makes a volume for it.
    Provision {
        /// Who.
        provisioner: String,
        /// For the user.
        note: Note,
    },
}

fn has(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta, key: &str) -> bool {
    annotations(meta).contains_key(key)
}

/// The volume that a claim names.
pub fn volume_name(claim: &PersistentVolumeClaim) -> &str {
    claim
        .spec
        .as_ref()
        .and_then(|s| s.volume_name.as_deref())
        .unwrap_or_default()
}

/// Decides about a claim.
///
/// # Errors
/// A selector that is none.
pub fn claim(
    claim: &PersistentVolumeClaim,
    volumes: &[Arc<PersistentVolume>],
    classes: &[Arc<StorageClass>],
) -> Result<ClaimStep, String> {
    let named = volume_name(claim);
    let volume = volumes.iter().find(|v| name(&v.metadata) == named);
    if has(&claim.metadata, BIND_COMPLETED) {
        return Ok(bound_claim(claim, named, volume));
    }
    if !named.is_empty() {
        return Ok(asking_claim(claim, volume));
    }
    let class = classes
        .iter()
        .find(|c| name(&c.metadata) == claim_class(claim));
    // An answered wait is a wait no longer: the scheduler has chosen a node.
    let delayed = waits_for_consumer(class.map(|c| &**c));
    if let Some(volume) = best(claim, volumes, delayed)? {
        return Ok(ClaimStep::Bind(volume.clone()));
    }
    if wants_default_class(claim)
        && let Some(class) = default_class(classes)
    {
        return Ok(ClaimStep::AssignClass(class.to_owned()));
    }
    let pending = |warning: bool, reason: &'static str, text: &str| {
        ClaimStep::Phase("Pending", Some((warning, reason, text.to_owned())))
    };
    if delayed && !has(&claim.metadata, SELECTED_NODE) {
        let text = "waiting for first consumer to be created before binding";
        return Ok(pending(false, "WaitForFirstConsumer", text));
    }
    let wanted = claim_class(claim);
    if wanted.is_empty() {
        let text = "no persistent volumes available for this claim and no storage class is set";
        return Ok(pending(false, "FailedBinding", text));
    }
    Ok(match class {
        None => {
            let text = format!("storageclass.storage.k8s.io {wanted:?} not found");
            pending(true, "ProvisioningFailed", &text)
        }
        Some(class) if class.provisioner == NO_PROVISIONER => {
            let text = "no volume plugin matched name: kubernetes.io/no-provisioner";
            pending(true, "ProvisioningFailed", text)
        }
        Some(class) => {
            let provisioner = class.provisioner.clone();
            let text = format!(
                "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered."
            );
            ClaimStep::Provision {
                provisioner,
                note: (false, "ExternalProvisioning", text),
            }
        }
    })
}

/// A claim that asks for one particular volume.
fn asking_claim(
    claim: &PersistentVolumeClaim,
    volume: Option<&Arc<PersistentVolume>>,
) -> ClaimStep {
    let Some(volume) = volume else {
        return ClaimStep::Phase("Pending", None);
    };
    let own = name(&volume.metadata);
    if claim_ref(volume).is_none() {
        return match mismatch(volume, claim) {
            None => ClaimStep::Bind(volume.clone()),
            Some(why) => {
                let text = format!("Cannot bind to requested volume {own:?}: {why}");
                ClaimStep::Phase("Pending", Some((true, "VolumeMismatch", text)))
            }
        };
    }
    if is_promised(volume, claim) {
        return ClaimStep::Bind(volume.clone());
    }
    let text = format!("volume {own:?} already bound to a different claim.");
    ClaimStep::Phase("Pending", Some((true, "FailedBinding", text)))
}

/// A claim whose binding was complete once.
fn bound_claim(
    claim: &PersistentVolumeClaim,
    named: &str,
    volume: Option<&Arc<PersistentVolume>>,
) -> ClaimStep {
    let lost = |reason: &'static str, text: &str| {
        ClaimStep::Phase("Lost", Some((true, reason, text.to_owned())))
    };
    if named.is_empty() {
        let text =
            "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!";
        return lost("ClaimLost", text);
    }
    let Some(volume) = volume else {
        let text = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
        return lost("ClaimLost", text);
    };
    match claim_ref(volume) {
        // Lost on the way, or complete: what is missing is written.
        None => ClaimStep::Bind(volume.clone()),
        Some(r) if r.uid.as_deref() == Some(uid(&claim.metadata)) => {
            ClaimStep::Bind(volume.clone())
        }
        Some(_) => lost(
            "ClaimMisbound",
            "Two claims are bound to the same volume, this one is bound incorrectly",
        ),
    }
}

/// The claim that a volume refers to, as far as it is known.
#[derive(Clone, Copy, Debug)]
pub enum Holder<'a> {
    /// It exists, with the uid that the volume means.
    Here(&'a PersistentVolumeClaim),
    /// The server says that it does not.
    Gone,
}

/// What to do about a volume.
#[derive(Debug, PartialEq)]
pub enum VolumeStep {
    /// It is in this phase.
    Phase(&'static str),
    /// Its claim has to be looked at.
    LookAtClaim,
    /// Neither can be bound: told to both.
    Mismatch,
    /// It is not needed by the claim that it is promised to.
    Unbind,
    /// Its claim is gone: it is released, and dealt with as its policy says.
    Release(Reclaim),
}

/// What becomes of a released volume.
#[derive(Debug, PartialEq)]
pub enum Reclaim {
    /// It stays.
    Keep,
    /// Nobody here can do what the policy asks for: it has failed, for this reason.
    Fail(Note),
}

/// Decides about a volume that is promised to somebody; `holder` is who that is.
pub fn volume(volume: &PersistentVolume, holder: Holder<'_>) -> VolumeStep {
    let Some(reference) = claim_ref(volume) else {
        return VolumeStep::Phase("Available");
    };
    if reference.uid.as_deref().unwrap_or_default().is_empty() {
        // Promised by its maker; the claim may not be there yet.
        return VolumeStep::Phase("Available");
    }
    let Holder::Here(claim) = holder else {
        return VolumeStep::Release(reclaim(volume));
    };
    let named = volume_name(claim);
    if named.is_empty() {
        return if modes_differ(claim, volume) {
            VolumeStep::Mismatch
        } else {
            VolumeStep::LookAtClaim
        };
    }
    if named == name(&volume.metadata) {
        return VolumeStep::Phase("Bound");
    }
    let policy = policy(volume);
    if has(&volume.metadata, PROVISIONED_BY) && policy == "Delete" {
        return VolumeStep::Release(reclaim(volume));
    }
    VolumeStep::Unbind
}

fn policy(volume: &PersistentVolume) -> &str {
    volume
        .spec
        .as_ref()
        .and_then(|s| s.persistent_volume_reclaim_policy.as_deref())
        .unwrap_or("Retain")
}

/// Upstream `reclaimVolume`, without plugins that delete or scrub by themselves: what a provisioner made, it deletes.
fn reclaim(volume: &PersistentVolume) -> Reclaim {
    match policy(volume) {
        "Retain" => Reclaim::Keep,
        "Delete" if has(&volume.metadata, PROVISIONED_BY) => Reclaim::Keep,
        "Delete" => {
            let text = format!(
                "error getting deleter volume plugin for volume {:?}: no deletable volume plugin matched",
                name(&volume.metadata)
            );
            Reclaim::Fail((true, "VolumeFailedDelete", text))
        }
        "Recycle" => {
            let text = "No recycler plugin found for the volume!".to_owned();
            Reclaim::Fail((true, "VolumeFailedRecycle", text))
        }
        _ => {
            let text = "Volume has unrecognized PersistentVolumeReclaimPolicy".to_owned();
            Reclaim::Fail((true, "VolumeUnknownReclaimPolicy", text))
        }
    }
}

/// The volume as it is when it belongs to `claim`; `None` when it does already.
pub fn promised_to(
    volume: &PersistentVolume,
    claim: &PersistentVolumeClaim,
) -> Option<PersistentVolume> {
    let complete =
        claim_ref(volume).is_some_and(|r| r.uid.as_deref() == Some(uid(&claim.metadata)));
    if complete {
        return None;
    }
    let mut new = volume.clone();
    if !is_promised(volume, claim) {
        let notes = new.metadata.annotations.get_or_insert_default();
        notes.insert(BOUND_BY_CONTROLLER.to_owned(), "yes".to_owned());
    }
    let spec = new.spec.get_or_insert_default();
    spec.claim_ref = Some(k8s_openapi::api::core::v1::ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("PersistentVolumeClaim".to_owned()),
        namespace: claim.metadata.namespace.clone(),
        name: claim.metadata.name.clone(),
        uid: claim.metadata.uid.clone(),
        resource_version: claim.metadata.resource_version.clone(),
        field_path: None,
    });
    Some(new)
}

/// The volume as it is when nobody holds it: promised still to whom its maker promised it.
pub fn unbound(volume: &PersistentVolume) -> PersistentVolume {
    let mut new = volume.clone();
    let ours = has(&volume.metadata, BOUND_BY_CONTROLLER);
    if let Some(spec) = &mut new.spec {
        if ours {
            spec.claim_ref = None;
        } else if let Some(reference) = &mut spec.claim_ref {
            reference.uid = None;
        }
    }
    if let Some(notes) = &mut new.metadata.annotations {
        notes.remove(BOUND_BY_CONTROLLER);
    }
    new
}

/// The claim as it is when `volume` is its own; `None` when it is already.
pub fn claim_with(
    claim: &PersistentVolumeClaim,
    volume: &PersistentVolume,
) -> Option<PersistentVolumeClaim> {
    let own = name(&volume.metadata);
    let mut new = claim.clone();
    if volume_name(claim) != own {
        new.spec.get_or_insert_default().volume_name = Some(own.to_owned());
        let notes = new.metadata.annotations.get_or_insert_default();
        notes.insert(BOUND_BY_CONTROLLER.to_owned(), "yes".to_owned());
    }
    if !has(&claim.metadata, BIND_COMPLETED) {
        let notes = new.metadata.annotations.get_or_insert_default();
        notes.insert(BIND_COMPLETED.to_owned(), "yes".to_owned());
    }
    (new != *claim).then_some(new)
}

/// The claim with the status of a bound one; `None` when it has it already.
pub fn claim_bound(
    claim: &PersistentVolumeClaim,
    volume: &PersistentVolume,
) -> Option<PersistentVolumeClaim> {
    let mut new = claim.clone();
    let status = new.status.get_or_insert_default();
    status.phase = Some("Bound".to_owned());
    let spec = volume.spec.as_ref();
    status.access_modes = spec.and_then(|s| s.access_modes.clone());
    // A claim that has grown keeps the size that its file system has.
    if claim
        .status
        .as_ref()
        .is_none_or(|s| s.phase.as_deref() != Some("Bound"))
    {
        status.capacity = spec.and_then(|s| s.capacity.clone());
        status.current_volume_attributes_class_name = claim
            .spec
            .as_ref()
            .and_then(|s| s.volume_attributes_class_name.clone());
    }
    (new.status != claim.status).then_some(new)
}

/// The claim in another phase, without a volume; `None` when it is in it already.
pub fn claim_in(
    claim: &PersistentVolumeClaim,
    phase: &'static str,
) -> Option<PersistentVolumeClaim> {
    let mut new = claim.clone();
    let status = new.status.get_or_insert_default();
    status.phase = Some(phase.to_owned());
    status.access_modes = None;
    status.capacity = None;
    (new.status != claim.status).then_some(new)
}
