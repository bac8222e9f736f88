//! Signs the kubeconfig in `kube-public/cluster-info` with each bootstrap token, as detached JWS under
//! `jws-kubeconfig-<token id>` (upstream `bootstrapsigner.go`).

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use keelson_runtime::controller::{Action, Controller};
use keelson_runtime::informer::{Informer, InformerConfig};
use keelson_runtime::workqueue::WorkQueue;
use kube::Api;
use kube::api::PostParams;
use sha2::{Digest, Sha256};

use crate::error::{is_conflict, is_not_found};
use crate::{Context, Error, synced};

const MAP_NAMESPACE: &str = "kube-public";
const MAP: &str = "cluster-info";
const SIGNATURE_PREFIX: &str = "jws-kubeconfig-";
const IDENTITY: &str = "bootstrap-signer";

/// Runs until shutdown.
///
/// # Errors
/// None: what fails is tried again.
pub async fn run(context: Context) -> anyhow::Result<()> {
    let tokens = super::tokens(&context, IDENTITY);
    let maps: Informer<ConfigMap> = Informer::start(
        Api::namespaced(context.client(IDENTITY), MAP_NAMESPACE),
        InformerConfig {
            fields: format!("metadata.name={MAP}"),
            ..Default::default()
        },
        context.clock.clone(),
        context.shutdown.child_token(),
    );
    let queue = WorkQueue::new("bootstrap_signer_queue", &context.metrics);
    // One key: whatever changed, the whole map is looked at.
    maps.on_event({
        let queue = queue.clone();
        move |_| queue.add(())
    });
    tokens.on_event({
        let queue = queue.clone();
        move |_| queue.add(())
    });
    synced!(tokens, maps);
    let api: Api<ConfigMap> = Api::namespaced(context.client(IDENTITY), MAP_NAMESPACE);
    let clock = context.clock.clone();
    Controller::new("bootstrap-signer-controller", queue)
        .run(context.shutdown.clone(), move |()| {
            let api = api.clone();
            let list = tokens.store().list();
            let changed = maps
                .store()
                .get_parts(MAP_NAMESPACE, MAP)
                .and_then(|map| plan(&map, list.iter().map(AsRef::as_ref), clock.now()));
            async move {
                let Some(map) = changed else {
                    return Ok::<_, Error>(Action::Done);
                };
                match api.replace(MAP, &PostParams::default(), &map).await {
                    Ok(_) => Ok(Action::Done),
                    Err(error) if is_not_found(&error) => Ok(Action::Done),
                    Err(error) if is_conflict(&error) => Ok(Action::Retry),
                    Err(error) => Err(error.into()),
                }
            }
        })
        .await;
    Ok(())
}

/// The map with the signatures it should have; `None` if it has them.
fn plan<'a>(
    map: &ConfigMap,
    tokens: impl Iterator<Item = &'a Secret>,
    now: Timestamp,
) -> Option<ConfigMap> {
    let data = map.data.as_ref()?;
    let content = data.get("kubeconfig")?;
    let mut wanted: BTreeMap<String, String> = data
        .iter()
        .filter(|(key, _)| !key.starts_with(SIGNATURE_PREFIX))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    for (id, secret) in tokens.filter_map(|token| super::signs(token, now)) {
        wanted.insert(
            format!("{SIGNATURE_PREFIX}{id}"),
            detached_jws(content, id, secret),
        );
    }
    (wanted != *data).then(|| ConfigMap {
        data: Some(wanted),
        ..map.clone()
    })
}

/// A JWS in compact form with HS256, its middle part left out (upstream `ComputeDetachedSignature`).
pub fn detached_jws(content: &str, id: &str, secret: &str) -> String {
    // Ids are of [a-z0-9]: nothing to escape.
    let header = URL_SAFE_NO_PAD.encode(format!("{{\"alg\":\"HS256\",\"kid\":\"{id}\"}}"));
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(content));
    let signature = hmac_sha256(secret.as_bytes(), signed.as_bytes());
    format!("{header}..{}", URL_SAFE_NO_PAD.encode(signature))
}

/// RFC 2104.
fn hmac_sha256(key: &[u8], message: &[u8]) -> Vec<u8> {
    const BLOCK: usize = 64;
    let mut padded = if key.len() > BLOCK {
        Sha256::digest(key).to_vec()
    } else {
        key.to_vec()
    };
    padded.resize(BLOCK, 0);
    let pad = |byte: u8| padded.iter().map(|key| key ^ byte).collect::<Vec<u8>>();
    let inner = Sha256::new()
        .chain_update(pad(0x36))
        .chain_update(message)
        .finalize();
    Sha256::new()
        .chain_update(pad(0x5c))
        .chain_update(inner)
        .finalize()
        .to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_code_is_that_of_rfc_4231() {
        let hex: String = hmac_sha256(b"Jefe", b"what do ya want for nothing?")
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(
            hex,
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn signatures_follow_the_tokens() {
        use base64::engine::general_purpose::STANDARD;
        let now: Timestamp = "2026-01-10T00:00:00Z".parse().unwrap();
        let token = |id: &str, extra: &[(&str, &str)]| -> Secret {
            let mut data = json!({
                "token-id": STANDARD.encode(id),
                "token-secret": STANDARD.encode("0123456789abcdef"),
                "usage-bootstrap-signing": STANDARD.encode("true"),
            });
            for (key, value) in extra {
                data[*key] = STANDARD.encode(value).into();
            }
            let name = format!("bootstrap-token-{id}");
            serde_json::from_value(
                json!({"metadata": {"name": name}, "type": super::super::TYPE, "data": data}),
            )
            .unwrap()
        };
        let tokens = [
            token("aaaaaa", &[]),
            token("bbbbbb", &[("expiration", "2026-01-09T00:00:00Z")]),
            token("cccccc", &[("expiration", "2026-01-11T00:00:00Z")]),
            token("dddddd", &[("usage-bootstrap-signing", "false")]),
            token("eeeeee", &[("token-id", "ffffff")]),
        ];
        let map: ConfigMap = serde_json::from_value(json!({
            "metadata": {"name": MAP},
            "data": {"kubeconfig": "content", "jws-kubeconfig-bbbbbb": "old"},
        }))
        .unwrap();
        let signed = plan(&map, tokens.iter(), now).unwrap();
        let keys: Vec<&str> = signed
            .data
            .iter()
            .flatten()
            .map(|(key, _)| key.as_str())
            .collect();
        assert_eq!(
            keys,
            [
                "jws-kubeconfig-aaaaaa",
                "jws-kubeconfig-cccccc",
                "kubeconfig"
            ]
        );
        assert_eq!(plan(&signed, tokens.iter(), now), None);
    }
}
