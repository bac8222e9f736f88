//! Services: addresses and ports are allocated around the write, and linked fields follow each other
//! (upstream `pkg/registry/core/service`, `storage/alloc.go`).

use std::net::IpAddr;
use std::sync::Arc;

use keelson_machinery::meta::{self, GroupKind};
use keelson_machinery::status::ApiError;
use keelson_machinery::status::field::{FieldError, Path};
use keelson_machinery::value::{self, Value};
use serde_json::json;

use super::allocator::{AllocationError, Allocator, Held, family, owner_of};
use crate::registry::generic;
use crate::registry::strategy::{Context, Rollback, Strategy};

/// The `clusterIP` of a headless Service.
const NONE: &str = "None";

/// Strategy of Services.
pub struct Service {
    /// Addresses and ports of the cluster.
    pub allocator: Arc<Allocator>,
}

impl Strategy for Service {
    fn default(&self, object: &mut Value) {
        set_defaults(object);
    }

    fn prepare_for_update(&self, context: &Context<'_>, object: &mut Value, old: &Value) {
        if context.subresource == "status" {
            generic::keep_all_but_status(object, old);
            return;
        }
        generic::keep_member(object, old, "status");
        drop_type_dependent_fields(object, old);
    }

    fn begin_create(
        &self,
        _: &Context<'_>,
        object: &mut Value,
    ) -> Result<Option<Rollback>, ApiError> {
        self.allocate(object, None).map(Some)
    }

    fn begin_update(
        &self,
        context: &Context<'_>,
        object: &mut Value,
        old: &Value,
    ) -> Result<Option<Rollback>, ApiError> {
        if context.subresource == "status" {
            return Ok(None);
        }
        keep_allocated_values(object, old);
        self.allocate(object, Some(old)).map(Some)
    }

    fn after_write(&self, _: &Context<'_>, object: &Value, old: Option<&Value>) {
        let Some(old) = old else {
            return;
        };
        let kept = Held::of(object);
        let mut released = Held::of(old);
        released.addresses.retain(|a| !kept.addresses.contains(a));
        released.ports.retain(|p| !kept.ports.contains(p));
        self.allocator.release(&owner_of(object), &released);
    }

    fn after_delete(&self, _: &Context<'_>, object: &Value) {
        self.allocator.release(&owner_of(object), &Held::of(object));
    }
}

fn kind_of(service: &Value) -> &str {
    value::str_or_empty(service, &["spec", "type"])
}

fn is_external_name(service: &Value) -> bool {
    kind_of(service) == "ExternalName"
}

fn has_node_ports(service: &Value) -> bool {
    matches!(kind_of(service), "NodePort" | "LoadBalancer")
}

fn needs_health_check_port(service: &Value) -> bool {
    kind_of(service) == "LoadBalancer"
        && value::str_or_empty(service, &["spec", "externalTrafficPolicy"]) == "Local"
}

fn texts(service: &Value, field: &str) -> Vec<String> {
    value::items(service, &["spec", field])
        .iter()
        .filter_map(Value::as_str)
        .map(str::to_string)
        .collect()
}

fn invalid(service: &Value, findings: Vec<FieldError>) -> ApiError {
    ApiError::invalid(
        &GroupKind::new("", "Service"),
        meta::name(service),
        findings,
    )
}

/// Upstream `SetDefaults_Service`.
fn set_defaults(object: &mut Value) {
    if !value::get(object, &["spec"]).is_some_and(Value::is_object) {
        return;
    }
    let absent =
        |object: &Value, field: &str| value::str_or_empty(object, &["spec", field]).is_empty();
    if absent(object, "sessionAffinity") {
        value::set(object, &["spec", "sessionAffinity"], "None");
    }
    match value::str_or_empty(object, &["spec", "sessionAffinity"]) {
        "None" => {
            value::remove(object, &["spec", "sessionAffinityConfig"]);
        }
        "ClientIP" => {
            let timeout = [
                "spec",
                "sessionAffinityConfig",
                "clientIP",
                "timeoutSeconds",
            ];
            if value::get(object, &timeout).is_none() {
                value::set(object, &timeout, 10_800);
            }
        }
        _ => {}
    }
    if absent(object, "type") {
        value::set(object, &["spec", "type"], "ClusterIP");
    }
    if let Some(ports) = value::get_mut(object, &["spec", "ports"]).and_then(Value::as_array_mut) {
        for port in ports {
            if value::str_or_empty(port, &["protocol"]).is_empty() {
                value::set(port, &["protocol"], "TCP");
            }
            let target = value::get(port, &["targetPort"]);
            let unset = match target {
                None | Some(Value::Null) => true,
                Some(Value::Number(number)) => number.as_i64() == Some(0),
                Some(Value::String(text)) => text.is_empty(),
                Some(_) => false,
            };
            if unset && let Some(number) = value::get(port, &["port"]).cloned() {
                value::set(port, &["targetPort"], number);
            }
        }
    }
    let kind = kind_of(object).to_string();
    if has_node_ports(object) && absent(object, "externalTrafficPolicy") {
        value::set(object, &["spec", "externalTrafficPolicy"], "Cluster");
    }
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer" | "ClusterIP")
        && absent(object, "internalTrafficPolicy")
    {
        value::set(object, &["spec", "internalTrafficPolicy"], "Cluster");
    }
    if kind == "LoadBalancer"
        && value::get(object, &["spec", "allocateLoadBalancerNodePorts"]).is_none()
    {
        value::set(object, &["spec", "allocateLoadBalancerNodePorts"], true);
    }
    if kind == "LoadBalancer"
        && let Some(ingress) = value::get_mut(object, &["status", "loadBalancer", "ingress"])
            .and_then(Value::as_array_mut)
    {
        for one in ingress {
            if !value::str_or_empty(one, &["ip"]).is_empty()
                && value::get(one, &["ipMode"]).is_none()
            {
                value::set(one, &["ipMode"], "VIP");
            }
        }
    }
}

/// Clients that send back a Service without what was allocated for it keep it (upstream `patchAllocatedValues`).
fn keep_allocated_values(object: &mut Value, old: &Value) {
    if !is_external_name(old) && !is_external_name(object) {
        if value::str_or_empty(object, &["spec", "clusterIP"]).is_empty() {
            copy_field(object, old, "clusterIP");
        }
        if texts(object, "clusterIPs").is_empty()
            && value::get(object, &["spec", "clusterIP"]) == value::get(old, &["spec", "clusterIP"])
        {
            copy_field(object, old, "clusterIPs");
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if value::get(object, &["spec", field]).is_none() {
                copy_field(object, old, field);
            }
        }
    }
    if has_node_ports(old) && has_node_ports(object) {
        let old_ports = value::items(old, &["spec", "ports"]).to_vec();
        let allocates = allocates_node_ports(object);
        if let Some(ports) =
            value::get_mut(object, &["spec", "ports"]).and_then(Value::as_array_mut)
        {
            // A node port that the new object asks for elsewhere is not silently kept.
            let asked: Vec<i64> = ports
                .iter()
                .filter_map(|p| value::get_i64(p, &["nodePort"]))
                .collect();
            for port in ports {
                let unset = value::get_i64(port, &["nodePort"]).unwrap_or(0) == 0;
                let same = |other: &&Value| {
                    other.get("port") == port.get("port")
                        && other.get("protocol") == port.get("protocol")
                };
                if unset
                    && allocates
                    && let Some(kept) = old_ports
                        .iter()
                        .find(same)
                        .and_then(|p| value::get_i64(p, &["nodePort"]))
                    && kept != 0
                    && !asked.contains(&kept)
                {
                    value::set(port, &["nodePort"], kept);
                }
            }
        }
    }
    if needs_health_check_port(old)
        && needs_health_check_port(object)
        && value::get_i64(object, &["spec", "healthCheckNodePort"]).unwrap_or(0) == 0
    {
        copy_field(object, old, "healthCheckNodePort");
    }
}

fn copy_field(object: &mut Value, old: &Value, field: &str) {
    if let Some(kept) = value::get(old, &["spec", field]).cloned() {
        value::set(object, &["spec", field], kept);
    }
}

fn allocates_node_ports(service: &Value) -> bool {
    match kind_of(service) {
        "NodePort" => true,
        "LoadBalancer" => {
            value::get_bool(service, &["spec", "allocateLoadBalancerNodePorts"]).unwrap_or(true)
        }
        _ => false,
    }
}

/// Fields that only made sense for the old type go, when the client left them as they were
/// (upstream `dropTypeDependentFields`).
fn drop_type_dependent_fields(object: &mut Value, old: &Value) {
    let same = |object: &Value, field: &str| {
        value::get(object, &["spec", field]) == value::get(old, &["spec", field])
    };
    let clear = |object: &mut Value, field: &str| {
        value::remove(object, &["spec", field]);
    };
    if !is_external_name(old) && is_external_name(object) {
        if same(object, "clusterIP") && same(object, "clusterIPs") {
            clear(object, "clusterIP");
            clear(object, "clusterIPs");
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if same(object, field) {
                clear(object, field);
            }
        }
    }
    if has_node_ports(old) && !has_node_ports(object) {
        let before = Held::of(old).ports;
        let after = Held::of(object).ports;
        if after.iter().all(|port| before.contains(port))
            && let Some(ports) =
                value::get_mut(object, &["spec", "ports"]).and_then(Value::as_array_mut)
        {
            for port in ports {
                value::remove(port, &["nodePort"]);
            }
        }
    }
    if needs_health_check_port(old)
        && !needs_health_check_port(object)
        && same(object, "healthCheckNodePort")
    {
        clear(object, "healthCheckNodePort");
    }
    if kind_of(old) == "LoadBalancer" && kind_of(object) != "LoadBalancer" {
        for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if same(object, field) {
                clear(object, field);
            }
        }
    }
    if has_node_ports(old) && !has_node_ports(object) && same(object, "externalTrafficPolicy") {
        clear(object, "externalTrafficPolicy");
    }
    if kind_of(object) != "LoadBalancer"
        && value::get(object, &["status", "loadBalancer"]).is_some()
    {
        value::set(object, &["status", "loadBalancer"], json!({}));
    }
}

/// `clusterIP` and `clusterIPs` follow each other (upstream `normalizeClusterIPs`).
fn link_cluster_ips(object: &mut Value, old: Option<&Value>) {
    let single = value::str_or_empty(object, &["spec", "clusterIP"]).to_string();
    let Some(old) = old else {
        if !single.is_empty() && texts(object, "clusterIPs").is_empty() {
            value::set(object, &["spec", "clusterIPs"], json!([single]));
        }
        return;
    };
    let old_single = value::str_or_empty(old, &["spec", "clusterIP"]);
    let old_plural = texts(old, "clusterIPs");
    if !old_plural.is_empty() && texts(object, "clusterIPs").is_empty() && old_single == single {
        value::set(object, &["spec", "clusterIPs"], json!(old_plural));
    }
    if old_single != single && texts(object, "clusterIPs") == old_plural {
        if single.is_empty() {
            value::remove(object, &["spec", "clusterIPs"]);
        } else {
            value::set(object, &["spec", "clusterIPs"], json!([single]));
        }
    }
}

impl Service {
    /// Makes sure that the Service has all addresses and ports its type needs; what is new is given back by the
    /// returned rollback. What it no longer needs is given back after the write.
    fn allocate(&self, object: &mut Value, old: Option<&Value>) -> Result<Rollback, ApiError> {
        link_cluster_ips(object, old);
        self.choose_families(object, old)?;
        let owner = owner_of(object);
        let before = old.map(Held::of).unwrap_or_default();
        let mut taken = Held::default();
        let result = self
            .allocate_addresses(object, &owner, &before, &mut taken)
            .and_then(|()| self.allocate_ports(object, &owner, &before, &mut taken));
        let allocator = self.allocator.clone();
        let rollback = Box::new(move || allocator.release(&owner, &taken));
        match result {
            Ok(()) => Ok(rollback),
            Err(error) => {
                rollback();
                Err(error)
            }
        }
    }

    /// Sets `ipFamilyPolicy` and `ipFamilies` (upstream `initIPFamilyFields`).
    fn choose_families(&self, object: &mut Value, old: Option<&Value>) -> Result<(), ApiError> {
        if is_external_name(object) {
            return Ok(());
        }
        let headless_without_selector = value::str_or_empty(object, &["spec", "clusterIP"]) == NONE
            && value::get_object(object, &["spec", "selector"]).is_none_or(|s| s.is_empty());
        let mut policy = value::str_or_empty(object, &["spec", "ipFamilyPolicy"]).to_string();
        if policy.is_empty() {
            let kept = old.map(|old| value::str_or_empty(old, &["spec", "ipFamilyPolicy"]));
            policy = match kept {
                Some(kept) if !kept.is_empty() => kept.to_string(),
                _ if headless_without_selector => "RequireDualStack".to_string(),
                _ => "SingleStack".to_string(),
            };
            value::set(object, &["spec", "ipFamilyPolicy"], policy.as_str());
        }
        let spec = Path::new("spec");
        let configured = self.allocator.families();
        let mut families = texts(object, "ipFamilies");
        let mut addresses = texts(object, "clusterIPs");
        let mut findings = Vec::new();
        // Told before anything is done for each of them: a body has room for some hundred thousand.
        for (field, count) in [
            ("clusterIPs", addresses.len()),
            ("ipFamilies", families.len()),
        ] {
            if count > 2 {
                let given = value::get(object, &["spec", field]).cloned();
                findings.push(FieldError::invalid(
                    &spec.child(field),
                    given.unwrap_or_default(),
                    "may only hold up to 2 values",
                ));
            }
        }
        if !findings.is_empty() {
            return Err(invalid(object, findings));
        }
        if let Some(old) = old {
            if policy == "SingleStack" {
                if addresses == texts(old, "clusterIPs") && addresses.len() > 1 {
                    addresses.truncate(1);
                    value::set(object, &["spec", "clusterIPs"], json!(addresses));
                }
                if families == texts(old, "ipFamilies") && families.len() > 1 {
                    families.truncate(1);
                }
            } else {
                for (field, what, now) in [
                    ("clusterIPs", "cluster IP", addresses.len()),
                    ("ipFamilies", "IP family", families.len()),
                ] {
                    if now != 0 && now < texts(old, field).len() {
                        findings.push(FieldError::invalid(
                            &spec.child("ipFamilyPolicy"),
                            policy.as_str(),
                            format!("must be 'SingleStack' to release the secondary {what}"),
                        ));
                    }
                }
            }
        }
        if policy == "SingleStack" {
            for (many, what) in [
                (addresses.len() == 2, "cluster IPs"),
                (families.len() == 2, "IP families"),
            ] {
                if many {
                    findings.push(FieldError::invalid(
                        &spec.child("ipFamilyPolicy"),
                        policy.as_str(),
                        format!("must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified"),
                    ));
                }
            }
        }
        for (index, text) in addresses.iter().enumerate().skip(families.len()) {
            let Ok(address) = text.parse::<IpAddr>() else {
                break;
            };
            let of_address = family(address);
            if configured.contains(&of_address) {
                families.push(of_address.to_string());
            } else {
                findings.push(FieldError::invalid(
                    &spec.child("clusterIPs").index(index),
                    json!(addresses),
                    format!("{of_address} is not configured on this cluster"),
                ));
            }
        }
        if !findings.is_empty() {
            return Err(invalid(object, findings));
        }
        let other = |family: &str| if family == "IPv4" { "IPv6" } else { "IPv4" }.to_string();
        if families.is_empty()
            && let Some(first) = configured.first()
        {
            families.push(first.to_string());
        }
        if headless_without_selector {
            if families.len() == 1 && policy != "SingleStack" {
                families.push(other(&families[0]));
            }
            value::set(object, &["spec", "ipFamilies"], json!(families));
            return Ok(());
        }
        if policy == "RequireDualStack" && configured.len() < 2 {
            findings.push(FieldError::invalid(
                &spec.child("ipFamilyPolicy"),
                policy.as_str(),
                "this cluster is not configured for dual-stack services",
            ));
        }
        for (index, one) in families.iter().enumerate() {
            if !configured.contains(&one.as_str()) {
                findings.push(FieldError::invalid(
                    &spec.child("ipFamilies").index(index),
                    one.as_str(),
                    "not configured on this cluster",
                ));
            }
        }
        if !findings.is_empty() {
            return Err(invalid(object, findings));
        }
        if policy != "SingleStack" && families.len() == 1 && configured.len() == 2 {
            families.push(other(&families[0]));
        }
        value::set(object, &["spec", "ipFamilies"], json!(families));
        Ok(())
    }

    fn allocate_addresses(
        &self,
        object: &mut Value,
        owner: &Arc<str>,
        before: &Held,
        taken: &mut Held,
    ) -> Result<(), ApiError> {
        let mut addresses = texts(object, "clusterIPs");
        if is_external_name(object) || addresses.first().is_some_and(|a| a == NONE) {
            return Ok(());
        }
        let asked = addresses.clone();
        let refused = |object: &Value, what: String| {
            let path = Path::new("spec").child("clusterIPs");
            Err(invalid(
                object,
                vec![FieldError::invalid(&path, json!(asked), what)],
            ))
        };
        for (index, wanted) in texts(object, "ipFamilies").iter().enumerate() {
            let text = addresses.get(index).cloned().unwrap_or_default();
            let address = if text.is_empty() {
                match self.allocator.next_address(owner, wanted) {
                    Ok(address) => address,
                    Err(error) => {
                        return Err(ApiError::internal(format!(
                            "failed to allocate a serviceIP for Service {:?}: {error}",
                            meta::name(object)
                        )));
                    }
                }
            } else {
                let Ok(address) = text.parse::<IpAddr>() else {
                    // The text of an address is validation's task, which comes later and says it better.
                    continue;
                };
                if before.addresses.contains(&address) {
                    continue;
                }
                if let Err(error) = self.allocator.take_address(owner, address) {
                    return refused(object, format!("failed to allocate IP {text}: {error}"));
                }
                address
            };
            taken.addresses.push(address);
            if index < addresses.len() {
                addresses[index] = address.to_string();
            } else {
                addresses.push(address.to_string());
            }
        }
        if let Some(first) = addresses.first() {
            value::set(object, &["spec", "clusterIP"], first.as_str());
        }
        value::set(object, &["spec", "clusterIPs"], json!(addresses));
        Ok(())
    }

    fn allocate_ports(
        &self,
        object: &mut Value,
        owner: &Arc<str>,
        before: &Held,
        taken: &mut Held,
    ) -> Result<(), ApiError> {
        let name = meta::name(object).to_string();
        let refused = |path: Path, number: i64, error: AllocationError| {
            ApiError::invalid(
                &GroupKind::new("", "Service"),
                &name,
                vec![FieldError::invalid(&path, number, error.to_string())],
            )
        };
        let allocates = allocates_node_ports(object);
        if has_node_ports(object) {
            let mut ports = value::items(object, &["spec", "ports"]).to_vec();
            // One Service may use a node port for several protocols of the same port.
            let mut by_port: Vec<(i64, i64)> = ports
                .iter()
                .filter_map(|p| {
                    let asked = value::get_i64(p, &["nodePort"]).filter(|n| *n != 0)?;
                    Some((value::get_i64(p, &["port"])?, asked))
                })
                .collect();
            for (index, port) in ports.iter_mut().enumerate() {
                let number = value::get_i64(port, &["port"]).unwrap_or(0);
                let asked = value::get_i64(port, &["nodePort"]).unwrap_or(0);
                if asked == 0 && !allocates {
                    continue;
                }
                let shared = by_port
                    .iter()
                    .find(|(p, _)| *p == number)
                    .map(|(_, node_port)| *node_port);
                let wanted = if asked != 0 { Some(asked) } else { shared };
                let given = match wanted {
                    Some(wanted) => {
                        let path = Path::new("spec")
                            .child("ports")
                            .index(index)
                            .child("nodePort");
                        let fits = u16::try_from(wanted);
                        let held = fits
                            .is_ok_and(|p| before.ports.contains(&p) || taken.ports.contains(&p));
                        if !held {
                            // What does not fit into a port is out of any range.
                            let port = fits.unwrap_or(0);
                            self.allocator
                                .take_port(owner, port)
                                .map_err(|e| refused(path, wanted, e))?;
                            taken.ports.push(port);
                        }
                        wanted
                    }
                    None => {
                        let port = self.allocator.next_port(owner).map_err(|e| {
                            ApiError::internal(format!("failed to allocate a nodePort: {e}"))
                        })?;
                        taken.ports.push(port);
                        i64::from(port)
                    }
                };
                by_port.push((number, given));
                value::set(port, &["nodePort"], given);
            }
            value::set(object, &["spec", "ports"], Value::Array(ports));
        }
        if needs_health_check_port(object) {
            let asked = value::get_i64(object, &["spec", "healthCheckNodePort"]).unwrap_or(0);
            if asked == 0 {
                let port = self.allocator.next_port(owner).map_err(|e| {
                    ApiError::internal(format!("failed to allocate a HealthCheck NodePort 0: {e}"))
                })?;
                taken.ports.push(port);
                value::set(object, &["spec", "healthCheckNodePort"], port);
            } else if let Ok(port) = u16::try_from(asked)
                && !before.ports.contains(&port)
                && !taken.ports.contains(&port)
            {
                self.allocator.take_port(owner, port).map_err(|e| {
                    ApiError::internal(format!(
                        "failed to allocate requested HealthCheck NodePort {asked}: {e}"
                    ))
                })?;
                taken.ports.push(port);
            }
        }
        Ok(())
    }
}
