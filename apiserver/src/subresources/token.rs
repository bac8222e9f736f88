//! `serviceaccounts/token`: a new token for a service account.

use bytes::Bytes;
use http::StatusCode;
use keelson_machinery::meta;
use keelson_machinery::schema::Schema;
use keelson_machinery::status::ApiError;

use super::{admit, decode_kind};
use crate::admission::Operation;
use crate::body::Response;
use crate::registry::store;
use crate::verbs::call::Admission;
use crate::verbs::options::WriteOptions;
use crate::verbs::{Call, respond};

/// `POST serviceaccounts/NAME/token`.
pub async fn create(call: &mut Call, body: &Bytes) -> Result<Response, ApiError> {
    let output = call.output_without_table()?;
    let options = WriteOptions::read(&call.query, "CreateOptions", false)?;
    let (group, version, kind) = ("authentication.k8s.io", "v1", "TokenRequest");
    let mut request = decode_kind(call, body, group, version, kind, options.field_validation)?;
    if let Some(object_type) = Schema::builtin().lookup_kind(group, version, kind) {
        keelson_machinery::schema::apply_defaults(&mut request, object_type);
    }
    store::wipe_system_fields(&mut request);
    store::ensure_namespace(&call.info.namespace, &mut request)?;
    let name = meta::name(&request);
    if !name.is_empty() && name != call.info.name {
        return Err(ApiError::bad_request(format!(
            "token request name {name:?} does not match URL name {:?}",
            call.info.name
        )));
    }
    let admission = Admission::new(
        call,
        Operation::Create,
        kind,
        options.object.clone(),
        options.dry_run,
    );
    let request = admit(call, admission, request).await?;
    let server = call.server.clone();
    let issuer = server
        .token_issuer()
        .ok_or_else(ApiError::no_such_resource)?;
    let mut warnings = Vec::new();
    let answer = issuer
        .issue(
            &call.info.namespace,
            &call.info.name,
            request,
            &mut warnings,
        )
        .await?;
    call.warnings.extend(warnings);
    let object_type = Schema::builtin()
        .lookup_kind(group, version, kind)
        .ok_or_else(|| ApiError::internal("the type table has no TokenRequest"))?;
    respond::other_kind(call, &output, StatusCode::CREATED, &answer, object_type)
}
