//! Default classes, protection finalizers and claim growth (`plugin/pkg/admission/{storage,network}`).

use async_trait::async_trait;
use keelson_machinery::meta;
use keelson_machinery::quantity::Quantity;
use keelson_machinery::status::ApiError;
use keelson_machinery::value::{self, Value};

use super::{AdmissionRequest, Operation, Plugin, marked_default};
use crate::objects::Objects;

/// The annotation that named a claim's class before the field did.
const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// DefaultStorageClass.
pub(super) struct DefaultStorageClass {
    pub(super) objects: Objects,
}

#[async_trait]
impl Plugin for DefaultStorageClass {
    fn name(&self) -> &'static str {
        "DefaultStorageClass"
    }

    async fn admit(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        if request.operation != Operation::Create || !request.is("", "persistentvolumeclaims", "") {
            return Ok(());
        }
        let Some(claim) = &mut request.object else {
            return Ok(());
        };
        if meta::annotation(claim, BETA_CLASS).is_some()
            || value::get(claim, &["spec", "storageClassName"]).is_some()
        {
            return Ok(());
        }
        let classes = self
            .objects
            .list("storage.k8s.io", "storageclasses", None)
            .await?;
        let marks = [
            "storageclass.kubernetes.io/is-default-class",
            "storageclass.beta.kubernetes.io/is-default-class",
        ];
        if let Some(class) = marked_default(&classes, &marks) {
            value::set(claim, &["spec", "storageClassName"], meta::name(class));
        }
        Ok(())
    }
}

/// StorageObjectInUseProtection: volumes and claims in use outlive their deletion, by a finalizer that controllers take
/// away.
pub(super) struct StorageObjectInUseProtection;

#[async_trait]
impl Plugin for StorageObjectInUseProtection {
    fn name(&self) -> &'static str {
        "StorageObjectInUseProtection"
    }

    async fn admit(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        if request.operation != Operation::Create || !request.request.subresource.is_empty() {
            return Ok(());
        }
        let finalizer = match (
            request.request.group.as_str(),
            request.request.resource.as_str(),
        ) {
            ("", "persistentvolumes") => "kubernetes.io/pv-protection",
            ("", "persistentvolumeclaims") => "kubernetes.io/pvc-protection",
            ("storage.k8s.io", "volumeattributesclasses") => "kubernetes.io/vac-protection",
            _ => return Ok(()),
        };
        let Some(object) = &mut request.object else {
            return Ok(());
        };
        let mut finalizers: Vec<String> = meta::finalizers(object)
            .into_iter()
            .map(str::to_owned)
            .collect();
        if !finalizers.iter().any(|one| one == finalizer) {
            finalizers.push(finalizer.to_owned());
            meta::set_finalizers(object, &finalizers);
        }
        Ok(())
    }
}

/// PersistentVolumeClaimResize: claims grow only where their class allows it.
pub(super) struct PersistentVolumeClaimResize {
    pub(super) objects: Objects,
}

fn class_of(claim: &Value) -> &str {
    meta::annotation(claim, BETA_CLASS)
        .unwrap_or_else(|| value::str_or_empty(claim, &["spec", "storageClassName"]))
}

fn size_of(claim: &Value) -> Quantity {
    let text = value::str_or_empty(claim, &["spec", "resources", "requests", "storage"]);
    Quantity::parse(text).unwrap_or_default()
}

#[async_trait]
impl Plugin for PersistentVolumeClaimResize {
    fn name(&self) -> &'static str {
        "PersistentVolumeClaimResize"
    }

    async fn validate(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        if request.operation != Operation::Update || !request.is("", "persistentvolumeclaims", "") {
            return Ok(());
        }
        let (Some(claim), Some(old)) = (&request.object, &request.old_object) else {
            return Ok(());
        };
        if size_of(claim) <= size_of(old) {
            return Ok(());
        }
        if value::get_str(old, &["status", "phase"]) != Some("Bound") {
            return Err(request.forbidden("Only bound persistent volume claims can be expanded"));
        }
        let (class, old_class) = (class_of(claim), class_of(old));
        let class = if class.is_empty() || class != old_class {
            None
        } else {
            self.objects
                .find("storage.k8s.io", "storageclasses", "", class)
                .await?
        };
        if class
            .is_some_and(|class| value::get_bool(&class, &["allowVolumeExpansion"]) == Some(true))
        {
            return Ok(());
        }
        Err(request.forbidden("only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize"))
    }
}

/// DefaultIngressClass.
pub(super) struct DefaultIngressClass {
    pub(super) objects: Objects,
}

#[async_trait]
impl Plugin for DefaultIngressClass {
    fn name(&self) -> &'static str {
        "DefaultIngressClass"
    }

    async fn admit(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        if request.operation != Operation::Create
            || !request.is("networking.k8s.io", "ingresses", "")
        {
            return Ok(());
        }
        let Some(ingress) = &mut request.object else {
            return Ok(());
        };
        if value::get(ingress, &["spec", "ingressClassName"]).is_some()
            || meta::annotation(ingress, "kubernetes.io/ingress.class").is_some()
        {
            return Ok(());
        }
        let classes = self
            .objects
            .list("networking.k8s.io", "ingressclasses", None)
            .await?;
        if let Some(class) =
            marked_default(&classes, &["ingressclass.kubernetes.io/is-default-class"])
        {
            value::set(ingress, &["spec", "ingressClassName"], meta::name(class));
        }
        Ok(())
    }
}
