//! The server as its own client: requests of the system, through the same filters and verbs as any other.

use std::sync::Arc;

use async_trait::async_trait;
use http::Method;
use http_body_util::BodyExt;
use keelson_machinery::meta;
use keelson_machinery::status::ApiError;
use keelson_machinery::value::Value;

use crate::authn::ConnectionInfo;
use crate::authz::MASTERS;
use crate::body::full;
use crate::bootstrap::{ObjectWriter, Write};
use crate::filters;
use crate::reader::GroupResource;
use crate::request::UserInfo;
use crate::server::Server;

/// Name of the server's own user.
pub(crate) const USER: &str = "system:apiserver";

/// A client of a server within itself, as a member of `system:masters`.
pub struct Loopback(pub Arc<Server>);

impl Loopback {
    /// Sends a JSON patch.
    pub async fn json_patch(&self, path: &str, patch: &Value) -> Result<Value, ApiError> {
        let content_type = "application/json-patch+json";
        self.send(Method::PATCH, path, content_type, Some(patch))
            .await
    }

    /// Sends a request with a JSON body and reads the answer; a failure status is an error.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, ApiError> {
        self.send(method, path, "application/json", body).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: &'static str,
        body: Option<&Value>,
    ) -> Result<Value, ApiError> {
        let bytes = body.map(keelson_machinery::codec::json::encode);
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::CONTENT_TYPE, content_type)
            .header(http::header::ACCEPT, "application/json")
            .header(http::header::USER_AGENT, "kube-apiserver")
            .body(full(bytes.unwrap_or_default()))
            .map_err(ApiError::internal)?;
        let connection = ConnectionInfo {
            in_process: Some(Arc::new(UserInfo {
                name: USER.to_string(),
                groups: vec![MASTERS.to_string()],
                ..UserInfo::default()
            })),
            ..ConnectionInfo::default()
        };
        let response = filters::handle(self.0.clone(), connection, request).await;
        let code = response.status();
        let bytes = response
            .into_body()
            .collect()
            .await
            .map_err(ApiError::internal)?
            .to_bytes();
        let value: Value = serde_json::from_slice(&bytes).map_err(ApiError::internal)?;
        if code.is_success() {
            return Ok(value);
        }
        Err(ApiError::from_value(&value)
            .unwrap_or_else(|| ApiError::internal(format!("{path} answered {code}"))))
    }

    /// The path of an object's collection in its storage version.
    fn collection(&self, resource: &GroupResource, object: &Value) -> Result<String, ApiError> {
        let table = self.0.registry.table();
        let served = table
            .storage(resource)
            .ok_or_else(ApiError::no_such_resource)?;
        let row = &served.row;
        let base = if row.group.is_empty() {
            format!("/api/{}", row.version)
        } else {
            format!("/apis/{}/{}", row.group, row.version)
        };
        Ok(match meta::namespace(object) {
            namespace if row.namespaced => {
                format!("{base}/namespaces/{namespace}/{}", row.resource)
            }
            _ => format!("{base}/{}", row.resource),
        })
    }
}

#[async_trait]
impl ObjectWriter for Loopback {
    async fn write(&self, write: Write) -> Result<(), ApiError> {
        match write {
            Write::Create(resource, object) => {
                let path = self.collection(&resource, &object)?;
                self.request(Method::POST, &path, Some(&object)).await?;
            }
            Write::Update(resource, object) => {
                let path = format!(
                    "{}/{}",
                    self.collection(&resource, &object)?,
                    // Names of roles have colons, which paths may hold as they are.
                    meta::name(&object)
                );
                self.request(Method::PUT, &path, Some(&object)).await?;
            }
        }
        Ok(())
    }
}
