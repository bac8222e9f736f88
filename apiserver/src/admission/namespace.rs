//! NamespaceLifecycle: nothing is made in a namespace that is not there or is going away
//! (`k8s.io/apiserver/pkg/admission/plugin/namespace/lifecycle`).

use std::time::Duration;

use async_trait::async_trait;
use keelson_machinery::meta::GroupResource;
use keelson_machinery::status::ApiError;
use keelson_machinery::value::{self, Value};

use super::{AdmissionRequest, Operation, Plugin};
use crate::objects::Objects;

/// How long a create waits for a namespace that another server may just have made.
const MISSING_NAMESPACE_WAIT: Duration = Duration::from_millis(50);

/// Namespaces that cannot be deleted.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

/// The plugin.
pub(super) struct NamespaceLifecycle {
    pub(super) objects: Objects,
}

impl NamespaceLifecycle {
    async fn namespace(
        &self,
        request: &AdmissionRequest,
    ) -> Result<std::sync::Arc<Value>, ApiError> {
        let name = &request.request.namespace;
        if let Some(namespace) = self.objects.find("", "namespaces", "", name).await? {
            return Ok(namespace);
        }
        if request.operation == Operation::Create {
            tokio::time::sleep(MISSING_NAMESPACE_WAIT).await;
            if let Some(namespace) = self.objects.find("", "namespaces", "", name).await? {
                return Ok(namespace);
            }
        }
        Err(ApiError::not_found(
            &GroupResource::new("", "namespaces"),
            name,
        ))
    }
}

#[async_trait]
impl Plugin for NamespaceLifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }

    async fn admit(&self, request: &mut AdmissionRequest) -> Result<(), ApiError> {
        let info = &request.request;
        if info.group.is_empty() && info.resource == "namespaces" {
            if request.operation == Operation::Delete && IMMORTAL.contains(&info.name.as_str()) {
                return Err(ApiError::forbidden(
                    &request.group_resource(),
                    &info.name,
                    "this namespace may not be deleted",
                ));
            }
            return Ok(());
        }
        if info.namespace.is_empty()
            || !matches!(request.operation, Operation::Create | Operation::Update)
        {
            return Ok(());
        }
        // Whether a namespace exists must not be told to those who may only ask what they may do.
        if info.group == "authorization.k8s.io" && info.resource == "localsubjectaccessreviews" {
            return Ok(());
        }
        let namespace = self.namespace(request).await?;
        if request.operation == Operation::Create
            && value::get_str(&namespace, &["status", "phase"]) == Some("Terminating")
        {
            let name = &request.request.namespace;
            let error = request.forbidden(format!(
                "unable to create new content in namespace {name} because it is being terminated"
            ));
            return Err(error.with_cause(
                "NamespaceTerminating",
                format!("namespace {name} is being terminated"),
                "metadata.namespace",
            ));
        }
        Ok(())
    }
}
