//! Resources that are asked, not stored: token and access reviews, component statuses.

use bytes::Bytes;
use http::StatusCode;
use keelson_machinery::status::ApiError;
use serde_json::json;

use super::admit;
use crate::admission::Operation;
use crate::authn::review as authentication;
use crate::authz::review::{self as authorization, ReviewKind};
use crate::body::Response;
use crate::registry::store;
use crate::verbs::Call;
use crate::verbs::call::Admission;
use crate::verbs::options::WriteOptions;
use crate::verbs::respond::{self, ListHead};

/// `POST` of a review; the answer is the review with its status.
pub async fn create(call: &mut Call, body: &Bytes) -> Result<Response, ApiError> {
    let output = call.output_without_table()?;
    let options = WriteOptions::read(&call.query, "CreateOptions", false)?;
    let mut review = call.decode_object(body, options.field_validation)?;
    let served = call.served.clone();
    store::ensure_namespace(call.namespace(), &mut review)?;
    let admission = Admission::new(
        call,
        Operation::Create,
        &served.row.kind,
        options.object.clone(),
        options.dry_run,
    );
    let review = admit(call, admission, review).await?;
    let server = call.server.clone();
    let user = call.user.clone();
    let authorizer = server.authorizer();
    let mut answer = match served.row.resource.as_str() {
        "tokenreviews" => authentication::token_review(server.authentication(), review).await?,
        "selfsubjectreviews" => {
            authentication::self_subject_review(review, &user, &server.storage.clock)
        }
        "subjectaccessreviews" => {
            authorization::access_review(ReviewKind::Subject, review, &user, "", authorizer).await?
        }
        "selfsubjectaccessreviews" => {
            authorization::access_review(ReviewKind::SelfSubject, review, &user, "", authorizer)
                .await?
        }
        "localsubjectaccessreviews" => {
            authorization::access_review(
                ReviewKind::Local,
                review,
                &user,
                &call.info.namespace,
                authorizer,
            )
            .await?
        }
        "selfsubjectrulesreviews" => authorization::rules_review(review, &user, authorizer)?,
        _ => return Err(ApiError::no_such_resource()),
    };
    keelson_machinery::schema::normalize(&mut answer, served.object_type);
    respond::other_kind(
        call,
        &output,
        StatusCode::CREATED,
        &answer,
        served.object_type,
    )
}

/// The old list of components: the store, which is the only one the server knows of by itself.
pub async fn component_statuses(call: &mut Call) -> Result<Response, ApiError> {
    let output = call.output()?;
    let condition = match call.server.storage.engine.revision().await {
        Ok(_) => json!({"type": "Healthy", "status": "True", "message": "ok"}),
        Err(error) => json!({"type": "Healthy", "status": "False", "message": error.to_string()}),
    };
    let component = json!({
        "kind": "ComponentStatus",
        "apiVersion": "v1",
        "metadata": {"name": "etcd-0"},
        "conditions": [condition],
    });
    call.warnings
        .push("v1 ComponentStatus is deprecated in v1.19+".to_string());
    if call.info.verb == "list" {
        return respond::list_of_values(call, &output, &ListHead::default(), vec![component]);
    }
    if call.info.name != "etcd-0" {
        return Err(ApiError::not_found(&call.group_resource(), &call.info.name));
    }
    let served = call.served.clone();
    respond::other_kind(
        call,
        &output,
        StatusCode::OK,
        &component,
        served.object_type,
    )
}
