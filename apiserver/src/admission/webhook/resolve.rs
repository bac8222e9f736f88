//! Where a Service's port leads: a ready endpoint of it (upstream `util/proxy.ResolveEndpoint`, as with
//! `--enable-aggregator-routing`): a server outside of the cluster's nodes has routes to pods, but no dataplane that
//! knows the addresses of Services.

use std::net::IpAddr;

use keelson_machinery::meta::GroupResource;
use keelson_machinery::status::ApiError;
use keelson_machinery::value::{self, Value};

use crate::objects::Objects;

/// A ready endpoint of the Service's port, those of its primary address family first. `pick` chooses among several.
///
/// # Errors
/// 404 for an unknown Service, 503 for an unknown port or without endpoints, 500 for a Service without endpoints of its
/// own (`ExternalName`).
pub async fn resolve(
    objects: &Objects,
    namespace: &str,
    name: &str,
    port: u16,
    pick: usize,
) -> Result<(IpAddr, u16), ApiError> {
    let service = objects
        .find("", "services", namespace, name)
        .await?
        // Upstream's lister names the resource in the singular here.
        .ok_or_else(|| ApiError::not_found(&GroupResource::new("", "service"), name))?;
    let kind = value::get_str(&service, &["spec", "type"]).unwrap_or("ClusterIP");
    if !matches!(kind, "ClusterIP" | "NodePort" | "LoadBalancer") {
        return Err(ApiError::internal(format!(
            "unsupported service type {kind:?}"
        )));
    }
    let port_name = value::items(&service, &["spec", "ports"])
        .iter()
        .find(|p| value::get_i64(p, &["port"]) == Some(i64::from(port)))
        .map(|p| value::str_or_empty(p, &["name"]))
        .ok_or_else(|| {
            ApiError::service_unavailable(format!(
                "no service port {port} found for service {name:?}"
            ))
        })?;
    let family = match value::get(&service, &["spec", "ipFamilies", "0"])
        .or_else(|| service.get("spec")?.get("ipFamilies")?.get(0))
        .and_then(Value::as_str)
    {
        Some("IPv6") => "IPv6",
        _ => "IPv4",
    };
    let slices = objects
        .list("discovery.k8s.io", "endpointslices", Some(namespace))
        .await?;
    let mut preferred = Vec::new();
    let mut others = Vec::new();
    for slice in slices {
        let label = ["metadata", "labels", "kubernetes.io/service-name"];
        if value::get_str(&slice, &label) != Some(name) {
            continue;
        }
        let found = value::items(&slice, &["ports"])
            .iter()
            .find(|p| value::str_or_empty(p, &["name"]) == port_name)
            .and_then(|p| value::get_i64(p, &["port"]))
            .and_then(|p| u16::try_from(p).ok());
        let Some(target) = found else { continue };
        let list = match value::str_or_empty(&slice, &["addressType"]) == family {
            true => &mut preferred,
            false => &mut others,
        };
        for endpoint in value::items(&slice, &["endpoints"]) {
            let ready = value::get_bool(endpoint, &["conditions", "ready"]).unwrap_or(true);
            let address = value::items(endpoint, &["addresses"])
                .first()
                .and_then(Value::as_str)
                .and_then(|text| text.parse::<IpAddr>().ok());
            list.extend(address.filter(|_| ready).map(|address| (address, target)));
        }
    }
    let candidates = if preferred.is_empty() {
        others
    } else {
        preferred
    };
    let index = pick.checked_rem(candidates.len()).unwrap_or(0);
    candidates.get(index).copied().ok_or_else(|| {
        ApiError::service_unavailable(format!("no endpoints available for service {name:?}"))
    })
}
