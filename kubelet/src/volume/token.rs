//! Bound service-account tokens, renewed before they expire (upstream `pkg/kubelet/token`).

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use keelson_machinery::clock::Clock;
use kube::api::{Api, PostParams};
use parking_lot::Mutex;

use crate::podutil;

/// A token is renewed once it is this old, whatever its life.
const MAX_AGE: SignedDuration = SignedDuration::from_hours(24);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    uid: String,
    account: String,
    audience: String,
    seconds: i64,
}

struct Held {
    token: String,
    issued: Timestamp,
    expires: Timestamp,
    seconds: i64,
}

impl Held {
    /// Renewal is due at 80 % of the life, or after a day.
    fn is_due(&self, now: Timestamp) -> bool {
        let life = SignedDuration::from_secs(self.seconds);
        let renew_at = self.expires - life / 5;
        now >= renew_at || now.duration_since(self.issued) > MAX_AGE
    }
}

/// Tokens by pod, account and audience.
pub struct Tokens {
    client: Option<kube::Client>,
    clock: Clock,
    held: Mutex<HashMap<Key, Held>>,
}

impl Tokens {
    /// No tokens yet.
    pub fn new(client: Option<kube::Client>, clock: Clock) -> Self {
        Tokens {
            client,
            clock,
            held: Mutex::new(HashMap::new()),
        }
    }

    /// A token of the pod's service account, bound to the pod. A renewal that fails is no error while the last
    /// token is valid.
    pub async fn get(&self, pod: &Pod, audience: &str, seconds: i64) -> Result<String, String> {
        let account = podutil::spec(pod)
            .service_account_name
            .clone()
            .filter(|s| !s.is_empty())
            .unwrap_or_else(|| "default".to_owned());
        let key = Key {
            uid: podutil::uid(pod).to_owned(),
            account,
            audience: audience.to_owned(),
            seconds,
        };
        let now = self.clock.now();
        if let Some(h) = self.held.lock().get(&key)
            && !h.is_due(now)
        {
            return Ok(h.token.clone());
        }
        match self.request(pod, &key).await {
            Ok(held) => {
                let token = held.token.clone();
                self.held.lock().insert(key, held);
                Ok(token)
            }
            Err(e) => match self.held.lock().get(&key) {
                Some(h) if h.expires > now => Ok(h.token.clone()),
                _ => Err(format!("failed to fetch token: {e}")),
            },
        }
    }

    /// Forgets the tokens of a pod.
    pub fn forget(&self, uid: &str) {
        self.held.lock().retain(|k, _| k.uid != uid);
    }

    async fn request(&self, pod: &Pod, key: &Key) -> Result<Held, String> {
        let client = self
            .client
            .clone()
            .ok_or("cannot use TokenManager when kubelet is in standalone mode")?;
        let api: Api<ServiceAccount> = Api::namespaced(client, podutil::namespace(pod));
        let body = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(vec![key.audience.clone()]).filter(|_| !key.audience.is_empty()),
                expiration_seconds: Some(key.seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: pod.metadata.name.clone(),
                    uid: pod.metadata.uid.clone(),
                }),
            }),
            ..TokenRequest::default()
        };
        let answer: TokenRequest = api
            .create_subresource("token", &key.account, &PostParams::default(), &body)
            .await
            .map_err(|e| e.to_string())?;
        let status = answer.status.ok_or("the API server returned no token")?;
        let issued = self.clock.now();
        let token = status.token.ok_or("the API server returned no token")?;
        let expires = status
            .expiration_timestamp
            .ok_or("the API server returned a token without an end")?
            .0;
        let seconds = answer
            .spec
            .and_then(|s| s.expiration_seconds)
            .unwrap_or(key.seconds);
        Ok(Held {
            token,
            issued,
            expires,
            seconds,
        })
    }
}
