//! Creating and deleting pods for an owner, with the events that tell of it (upstream `RealPodControl`).

use std::sync::Arc;

use futures::future::join_all;
use k8s_openapi::api::core::v1::{ObjectReference, Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use keelson_runtime::events::Recorder;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};

use super::name;
use crate::error::is_namespace_terminating;

/// Writes pods as one controller.
#[derive(Clone)]
pub struct PodControl {
    client: Client,
    recorder: Recorder,
}

/// A pod as the template says, owned by `owner`, named by the server after `owner_name`.
pub fn pod_from_template(
    template: &PodTemplateSpec,
    owner_name: &str,
    owner: OwnerReference,
) -> Pod {
    let meta = template.metadata.as_ref();
    // The server appends five characters; a prefix that would not be a name loses its hyphen (ValidatePodName).
    let mut prefix = format!("{owner_name}-");
    if prefix.len() > 253 {
        prefix = owner_name.to_owned();
    }
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(prefix),
            labels: meta.and_then(|m| m.labels.clone()),
            annotations: meta.and_then(|m| m.annotations.clone()),
            finalizers: meta.and_then(|m| m.finalizers.clone()),
            owner_references: Some(vec![owner]),
            ..Default::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

impl PodControl {
    /// Writes with `client`, tells with `recorder`.
    pub fn new(client: Client, recorder: Recorder) -> Self {
        PodControl { client, recorder }
    }

    /// Creates a pod.
    ///
    /// # Errors
    /// Of the API. Recorded as an event unless the namespace is going away.
    pub async fn create(
        &self,
        space: &str,
        pod: &Pod,
        owner: &ObjectReference,
    ) -> kube::Result<Pod> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), space);
        match api.create(&PostParams::default(), pod).await {
            Ok(made) => {
                let text = format!("Created pod: {}", name(&made.metadata));
                self.recorder.normal(owner, "SuccessfulCreate", text);
                Ok(made)
            }
            Err(error) => {
                if !is_namespace_terminating(&error) {
                    let text = format!("Error creating: {}", reason(&error));
                    self.recorder.warning(owner, "FailedCreate", text);
                }
                Err(error)
            }
        }
    }

    /// Deletes a pod; `false` when it was gone already.
    ///
    /// # Errors
    /// Of the API, recorded as an event.
    pub async fn delete(
        &self,
        space: &str,
        pod: &str,
        owner: &ObjectReference,
    ) -> kube::Result<bool> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), space);
        match api.delete(pod, &DeleteParams::default()).await {
            Ok(_) => {
                let text = format!("Deleted pod: {pod}");
                self.recorder.normal(owner, "SuccessfulDelete", text);
                Ok(true)
            }
            Err(error) if crate::error::is_not_found(&error) => Ok(false),
            Err(error) => {
                let text = format!("Error deleting: {}", reason(&error));
                self.recorder.warning(owner, "FailedDelete", text);
                Err(error)
            }
        }
    }

    /// Creates many pods in batches of 1, 2, 4, ... so that a template the server refuses costs one request and not
    /// hundreds (`slowStartBatch`). Answers how many were made, and the first failure; after a failing batch no other is begun.
    pub async fn create_many(
        &self,
        space: &str,
        pods: &[Pod],
        owner: &ObjectReference,
    ) -> (usize, Option<kube::Error>) {
        let mut made = 0;
        let mut batch = 1;
        let mut rest = pods;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(batch.min(rest.len()));
            let results = join_all(now.iter().map(|pod| self.create(space, pod, owner))).await;
            let mut failure = None;
            for result in results {
                match result {
                    Ok(_) => made += 1,
                    Err(error) => failure = failure.or(Some(error)),
                }
            }
            if failure.is_some() {
                return (made, failure);
            }
            rest = later;
            batch *= 2;
        }
        (made, None)
    }

    /// Deletes many pods at once; answers the first failure, and calls `failed` for each pod that will not be seen going.
    pub async fn delete_many(
        &self,
        space: &str,
        pods: &[Arc<Pod>],
        owner: &ObjectReference,
        failed: impl Fn(&Pod),
    ) -> Option<kube::Error> {
        let results = join_all(
            pods.iter()
                .map(|pod| self.delete(space, name(&pod.metadata), owner)),
        )
        .await;
        let mut failure = None;
        for (pod, result) in pods.iter().zip(results) {
            match result {
                Ok(true) => {}
                Ok(false) => failed(pod),
                Err(error) => {
                    failed(pod);
                    failure = failure.or(Some(error));
                }
            }
        }
        failure
    }
}

/// The server's own words, without ours around them.
pub fn reason(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}
