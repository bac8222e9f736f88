//! Conversion by a webhook: `ConversionReview` v1 (upstream `webhook_converter.go`).

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use keelson_machinery::catalog::parse_api_version;
use keelson_machinery::clock::Clock;
use keelson_machinery::meta;
use keelson_machinery::status::ApiError;
use keelson_machinery::status::field::{self, Path};
use keelson_machinery::value::{self, Object, Value};
use rustls::crypto::CryptoProvider;
use serde_json::json;

use crate::admission::webhook::client::{ClientError, HookClient};
use crate::objects::Objects;

/// Sends a review to one webhook.
#[async_trait]
pub trait Poster: Send + Sync + 'static {
    /// The body of a successful answer, or what went wrong.
    async fn post(&self, body: Bytes) -> Result<Bytes, String>;
}

/// Makes the connection for a `WebhookClientConfig`.
pub type Connect = Arc<dyn Fn(&Value) -> Result<Arc<dyn Poster>, String> + Send + Sync>;

/// What all webhooks share.
#[derive(Clone)]
pub struct Webhooks {
    /// Makes connections.
    pub connect: Connect,
    /// For the uids of reviews.
    pub clock: Clock,
}

/// How long a conversion may take (upstream's client: 30 s).
const LIMIT: Duration = Duration::from_secs(30);

impl Webhooks {
    /// Webhooks that are called over HTTPS; `objects` tells where Services are.
    pub fn new(objects: Objects, provider: Arc<CryptoProvider>, clock: Clock) -> Webhooks {
        let connect = move |config: &Value| {
            let client = HookClient::new(config, &objects, &provider).map_err(|e| describe(&e))?;
            Ok(Arc::new(client) as Arc<dyn Poster>)
        };
        Webhooks {
            connect: Arc::new(connect),
            clock,
        }
    }
}

fn describe(error: &ClientError) -> String {
    match error {
        ClientError::Config(why) => why.clone(),
        ClientError::Call { message, .. } => message.clone(),
    }
}

#[async_trait]
impl Poster for HookClient {
    async fn post(&self, body: Bytes) -> Result<Bytes, String> {
        HookClient::post(self, body, LIMIT)
            .await
            .map_err(|e| describe(&e))
    }
}

/// The webhook of one definition.
pub struct Webhook {
    webhooks: Webhooks,
    client: Value,
    review_versions: Vec<String>,
    poster: OnceLock<Result<Arc<dyn Poster>, String>>,
    name: String,
}

impl Webhook {
    /// The webhook of the definition `name`; nothing is connected yet.
    pub fn new(
        webhooks: Webhooks,
        name: String,
        client: Value,
        review_versions: Vec<String>,
    ) -> Webhook {
        Webhook {
            webhooks,
            client,
            review_versions,
            poster: OnceLock::new(),
            name,
        }
    }

    /// Converts all objects that are not in the version `wanted` (`group/version`) yet.
    pub async fn convert(
        &self,
        mut objects: Vec<Value>,
        wanted: &str,
    ) -> Result<Vec<Value>, ApiError> {
        let other = |object: &Value| value::str_or_empty(object, &["apiVersion"]) != wanted;
        let Some(first) = objects.iter().find(|object| other(object)) else {
            return Ok(objects);
        };
        let kind = described(first);
        let failed = |why: String| {
            ApiError::internal(format!("conversion webhook for {kind} failed: {why}"))
        };
        let sent: Vec<&Value> = objects.iter().filter(|object| other(object)).collect();
        let count = sent.len();
        let uid = self.webhooks.clock.uuid();
        let version = self.review_version().map_err(&failed)?;
        let body = serde_json::to_vec(&json!({
            "kind": "ConversionReview",
            "apiVersion": format!("apiextensions.k8s.io/{version}"),
            "request": {"uid": uid, "desiredAPIVersion": wanted, "objects": sent},
        }))
        .map_err(|e| failed(e.to_string()))?;
        let poster = self
            .poster
            .get_or_init(|| (self.webhooks.connect)(&self.client))
            .clone()
            .map_err(&failed)?;
        let answer = poster.post(body.into()).await.map_err(&failed)?;
        let converted = read_answer(&answer, version, &uid).map_err(&failed)?;
        if converted.len() != count {
            return Err(ApiError::internal(format!(
                "conversion webhook for {kind} returned {} objects, expected {count}",
                converted.len()
            )));
        }
        let alone = objects.len() == 1;
        let places = objects
            .iter_mut()
            .filter(|object| value::str_or_empty(object, &["apiVersion"]) != wanted);
        for (index, (original, converted)) in places.zip(converted).enumerate() {
            let at = if alone {
                "invalid object".to_string()
            } else {
                format!("invalid converted object at index {index}")
            };
            *original = restored(original, converted, wanted).map_err(|why| {
                ApiError::internal(format!(
                    "conversion webhook for {kind} returned {}",
                    match why {
                        Bad::Version(why) if alone => {
                            format!("invalid object at index {index}: {why}")
                        }
                        Bad::Version(why) => format!("{at}: {why}"),
                        Bad::Object(why) => format!("{at}: {why}"),
                        Bad::Metadata(why) if alone => format!("invalid metadata: {why}"),
                        Bad::Metadata(why) => {
                            format!("invalid metadata in object at index {index}: {why}")
                        }
                    }
                ))
            })?;
        }
        tracing::debug!(
            definition = self.name,
            count,
            wanted,
            "converted by a webhook"
        );
        Ok(objects)
    }

    fn review_version(&self) -> Result<&str, String> {
        self.review_versions
            .iter()
            .map(String::as_str)
            .find(|version| matches!(*version, "v1" | "v1beta1"))
            .ok_or_else(|| "no supported conversion review versions".to_string())
    }
}

/// A kind as Go prints it: `g/v1, Kind=K`.
fn described(object: &Value) -> String {
    format!(
        "{}, Kind={}",
        value::str_or_empty(object, &["apiVersion"]),
        value::str_or_empty(object, &["kind"])
    )
}

/// The converted objects of an answer.
fn read_answer(answer: &[u8], version: &str, uid: &str) -> Result<Vec<Value>, String> {
    let review: Value = serde_json::from_slice(answer).map_err(|e| e.to_string())?;
    let wanted = format!("apiextensions.k8s.io/{version}, Kind=ConversionReview");
    if version == "v1" && described(&review) != wanted {
        return Err(format!(
            "expected webhook response of {wanted}, got {}",
            described(&review)
        ));
    }
    let Some(response) = review.get("response").filter(|r| r.is_object()) else {
        return Err("no response provided".to_string());
    };
    let found = value::str_or_empty(response, &["uid"]);
    if version == "v1" && found != uid {
        return Err(format!("expected response.uid={uid:?}, got {found:?}"));
    }
    let status = value::str_or_empty(response, &["result", "status"]);
    if status != "Success" {
        let message = value::str_or_empty(response, &["result", "message"]);
        return Err(if message.is_empty() {
            format!("response.result.status was '{status}', not 'Success'")
        } else {
            message.to_string()
        });
    }
    Ok(value::items(response, &["convertedObjects"]).to_vec())
}

enum Bad {
    Version(String),
    Object(String),
    Metadata(String),
}

/// A converted object with the metadata of the original: a webhook may change labels and annotations only.
fn restored(original: &Value, mut converted: Value, wanted: &str) -> Result<Value, Bad> {
    let text = |object: &Value, name: &str| value::str_or_empty(object, &[name]).to_string();
    let go = |api_version: &str| match parse_api_version(api_version) {
        Some((group, version)) => format!("{group}/{version}"),
        None => api_version.to_string(),
    };
    let received = text(&converted, "apiVersion");
    if received != wanted {
        return Err(Bad::Version(format!(
            "invalid groupVersion (expected {wanted}, received {})",
            go(&received)
        )));
    }
    let (kind, received) = (text(original, "kind"), text(&converted, "kind"));
    if kind != received {
        return Err(Bad::Version(format!(
            "invalid kind (expected {kind}, received {received})"
        )));
    }
    type Read = fn(&Value) -> &str;
    let parts: [(&str, Read); 3] = [
        ("name", meta::name),
        ("namespace", meta::namespace),
        ("UID", meta::uid),
    ];
    for (what, read) in parts {
        let (before, after) = (read(original), read(&converted));
        if before != after {
            return Err(Bad::Object(format!(
                "must have the same {what}: {before} != {after}"
            )));
        }
    }
    let Some(answered) = converted.get("metadata").cloned() else {
        return Err(Bad::Metadata("missing metadata in converted object".into()));
    };
    if !answered.is_object() {
        return Err(Bad::Metadata(
            "invalid metadata of another type in converted object".into(),
        ));
    }
    let mut metadata = original
        .get("metadata")
        .cloned()
        .unwrap_or_else(|| Value::Object(Object::new()));
    for name in ["labels", "annotations"] {
        let Some(members) = answered.get(name).filter(|members| !members.is_null()) else {
            value::remove(&mut metadata, &[name]);
            continue;
        };
        let Some(members) = members.as_object() else {
            return Err(Bad::Metadata(format!(
                "invalid metadata.{name} of another type in converted object"
            )));
        };
        if let Some((key, _)) = members.iter().find(|(_, member)| !member.is_string()) {
            return Err(Bad::Metadata(format!(
                "metadata.{name}[{key}] must be a string in converted object"
            )));
        }
        if metadata.get(name).and_then(Value::as_object) != Some(members) {
            let path = Path::new("metadata");
            let errors = if name == "labels" {
                meta::validate_labels(members, &path.child("labels"))
            } else {
                meta::validate_annotations(members, &path.child("annotation"))
            };
            if let Some(why) = field::aggregate(&errors) {
                return Err(Bad::Metadata(why));
            }
        }
        value::set(&mut metadata, &[name], Value::Object(members.clone()));
    }
    value::set(&mut converted, &["metadata"], metadata);
    Ok(converted)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A webhook that is a function from review to response.
    struct Fake(fn(&Value) -> Value);

    #[async_trait]
    impl Poster for Fake {
        async fn post(&self, body: Bytes) -> Result<Bytes, String> {
            let review: Value = serde_json::from_slice(&body).map_err(|e| e.to_string())?;
            let response = (self.0)(&review);
            let answer = json!({"kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1", "response": response});
            Ok(answer.to_string().into())
        }
    }

    fn converted(review: &Value) -> Vec<Value> {
        let mut objects = value::items(review, &["request", "objects"]).to_vec();
        for object in &mut objects {
            object["apiVersion"] = review["request"]["desiredAPIVersion"].clone();
            object["spec"] = json!({"hostPort": object["spec"]["host"]});
        }
        objects
    }

    fn answer(review: &Value, objects: Vec<Value>) -> Value {
        json!({"uid": review["request"]["uid"], "result": {"status": "Success"}, "convertedObjects": objects})
    }

    async fn convert(webhook: fn(&Value) -> Value) -> Result<Vec<Value>, String> {
        let webhooks = Webhooks {
            connect: Arc::new(move |_| Ok(Arc::new(Fake(webhook)))),
            clock: crate::testing::HandClock::new().clock(),
        };
        let webhook = Webhook::new(
            webhooks,
            "widgets.example.com".into(),
            json!({}),
            vec!["v9".into(), "v1".into()],
        );
        let object = |version: &str, name: &str| {
            json!({"apiVersion": format!("example.com/{version}"), "kind": "Widget",
                "metadata": {"name": name, "uid": "u", "labels": {"l": "1"}}, "spec": {"host": "h"}})
        };
        let objects = vec![object("v1", "a"), object("v2", "b"), object("v1", "c")];
        webhook
            .convert(objects, "example.com/v2")
            .await
            .map_err(|error| error.message)
    }

    #[tokio::test]
    async fn converts_what_is_in_another_version() {
        let objects = convert(|review| {
            let mut objects = converted(review);
            objects[0]["metadata"] =
                json!({"name": "a", "uid": "u", "labels": {"l": "2"}, "generation": 9});
            answer(review, objects)
        })
        .await
        .unwrap();
        assert_eq!(objects[0]["spec"], json!({"hostPort": "h"}));
        // Of the metadata only labels and annotations are the webhook's.
        assert_eq!(
            objects[0]["metadata"],
            json!({"name": "a", "uid": "u", "labels": {"l": "2"}})
        );
        assert_eq!(objects[1]["spec"], json!({"host": "h"}));
        assert_eq!(objects[2]["metadata"]["name"], "c");
    }

    #[tokio::test]
    async fn refuses_what_is_no_conversion() {
        type Case = (fn(&Value) -> Value, &'static str);
        let kind = "conversion webhook for example.com/v1, Kind=Widget";
        let cases: [Case; 6] = [
            (
                |review| answer(review, Vec::new()),
                " returned 0 objects, expected 2",
            ),
            (
                |review| json!({"uid": review["request"]["uid"], "result": {"status": "Failed", "message": "no"}}),
                " failed: no",
            ),
            (
                |review| {
                    let mut objects = converted(review);
                    objects[1]["metadata"]["name"] = "other".into();
                    answer(review, objects)
                },
                " returned invalid converted object at index 1: must have the same name: c != other",
            ),
            (
                |review| {
                    let mut objects = converted(review);
                    objects[0]["apiVersion"] = "example.com/v3".into();
                    answer(review, objects)
                },
                " returned invalid converted object at index 0: invalid groupVersion (expected example.com/v2, received example.com/v3)",
            ),
            (
                |review| {
                    let mut objects = converted(review);
                    objects[0]["metadata"]["labels"] = json!({"not ok": ""});
                    answer(review, objects)
                },
                " returned invalid metadata in object at index 0: metadata.labels: Invalid value",
            ),
            (
                |review| {
                    let mut answer = answer(review, converted(review));
                    answer["uid"] = "other".into();
                    answer
                },
                " failed: expected response.uid=",
            ),
        ];
        for (webhook, wanted) in cases {
            let error = convert(webhook).await.unwrap_err();
            let said = error.split_once(kind).map_or("", |(_, said)| said);
            assert!(said.starts_with(wanted), "{error}");
        }
    }
}
