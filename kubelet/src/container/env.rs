//! A container's environment (upstream `makeEnvironmentVariables`).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret, Service};

use super::expand::expand;
use crate::fields::{self, NodeFacts};
use crate::objects::{ObjectError, Objects};
use crate::podutil;

/// The environment of `container`: variables in the order of their definition, then those of services.
pub async fn environment(
    objects: &Objects,
    node: &NodeFacts,
    pod: &Pod,
    container: &Container,
    pod_ips: &[String],
) -> Result<Vec<(String, String)>, String> {
    let (uid, namespace) = (podutil::uid(pod), podutil::namespace(pod));
    let services = match objects.services(namespace) {
        Some(all) => service_variables(
            &all,
            namespace,
            podutil::spec(pod).enable_service_links.unwrap_or(true),
        ),
        None if podutil::is_static(pod) => BTreeMap::new(),
        None => {
            return Err(
                "services have not yet been read at least once, cannot construct envvars"
                    .to_owned(),
            );
        }
    };
    let mut maps: HashMap<String, Arc<ConfigMap>> = HashMap::new();
    let mut secrets: HashMap<String, Arc<Secret>> = HashMap::new();
    let mut env: Vec<(String, String)> = Vec::new();
    let set = |env: &mut Vec<(String, String)>, name: String, value: String| match env
        .iter_mut()
        .find(|(n, _)| *n == name)
    {
        Some(e) => e.1 = value,
        None => env.push((name, value)),
    };

    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        if let Some(r) = &from.config_map_ref {
            let map = match objects.config_map(uid, namespace, &r.name).await {
                Ok(m) => m,
                Err(e) if e.is_not_found() && r.optional == Some(true) => continue,
                Err(e) => return Err(e.to_string()),
            };
            for (k, v) in map.data.iter().flatten() {
                set(&mut env, format!("{prefix}{k}"), v.clone());
            }
            maps.insert(r.name.clone(), map);
        } else if let Some(r) = &from.secret_ref {
            let secret = match objects.secret(uid, namespace, &r.name).await {
                Ok(s) => s,
                Err(e) if e.is_not_found() && r.optional == Some(true) => continue,
                Err(e) => return Err(e.to_string()),
            };
            for (k, v) in secret.data.iter().flatten() {
                set(
                    &mut env,
                    format!("{prefix}{k}"),
                    String::from_utf8_lossy(&v.0).into_owned(),
                );
            }
            secrets.insert(r.name.clone(), secret);
        }
    }

    for var in container.env.iter().flatten() {
        let mut value = var.value.clone().unwrap_or_default();
        if !value.is_empty() {
            value = expand(&value, |name| {
                env.iter()
                    .find(|(n, _)| n == name)
                    .map(|(_, v)| v.as_str())
                    .or_else(|| services.get(name).map(String::as_str))
            });
        } else if let Some(from) = &var.value_from {
            if let Some(f) = &from.field_ref {
                value = fields::field(f, pod, node, pod_ips)?;
            } else if let Some(f) = &from.resource_field_ref {
                let named = f.container_name.as_deref().filter(|n| !n.is_empty());
                value = match named {
                    Some(n) if n != container.name => {
                        let other = podutil::find_container(pod, n)
                            .ok_or_else(|| format!("container {n} not found"))?;
                        fields::resource(f, &other, node)?
                    }
                    _ => fields::resource(f, container, node)?,
                };
            } else if let Some(r) = &from.config_map_key_ref {
                let optional = r.optional == Some(true);
                let map = match maps.get(&r.name) {
                    Some(m) => m.clone(),
                    None => match objects.config_map(uid, namespace, &r.name).await {
                        Ok(m) => m,
                        Err(e) if e.is_not_found() && optional => continue,
                        Err(e) => return Err(e.to_string()),
                    },
                };
                let found = map.data.as_ref().and_then(|d| d.get(&r.key)).cloned();
                maps.insert(r.name.clone(), map);
                value = match found {
                    Some(v) => v,
                    None if optional => continue,
                    None => {
                        return Err(format!(
                            "couldn't find key {} in ConfigMap {namespace}/{}",
                            r.key, r.name
                        ));
                    }
                };
            } else if let Some(r) = &from.secret_key_ref {
                let optional = r.optional == Some(true);
                let secret = match secrets.get(&r.name) {
                    Some(s) => s.clone(),
                    None => match objects.secret(uid, namespace, &r.name).await {
                        Ok(s) => s,
                        Err(e) if e.is_not_found() && optional => continue,
                        Err(e) => return Err(e.to_string()),
                    },
                };
                let found = secret
                    .data
                    .as_ref()
                    .and_then(|d| d.get(&r.key))
                    .map(|v| String::from_utf8_lossy(&v.0).into_owned());
                secrets.insert(r.name.clone(), secret);
                value = match found {
                    Some(v) => v,
                    None if optional => continue,
                    None => {
                        return Err(format!(
                            "couldn't find key {} in Secret {namespace}/{}",
                            r.key, r.name
                        ));
                    }
                };
            } else {
                return Err(format!(
                    "environment variable {:?} has a source that is not supported",
                    var.name
                ));
            }
        }
        set(&mut env, var.name.clone(), value);
    }
    for (name, value) in services {
        if !env.iter().any(|(n, _)| *n == name) {
            env.push((name, value));
        }
    }
    Ok(env)
}

/// The Docker-links style variables of services (upstream `envvars.FromServices`). Without `links`, only those of
/// `default/kubernetes`.
fn service_variables(
    services: &[Arc<Service>],
    namespace: &str,
    links: bool,
) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    let is_master = |s: &Service| {
        s.metadata.namespace.as_deref() == Some("default")
            && s.metadata.name.as_deref() == Some("kubernetes")
    };
    // A service of the pod's own namespace wins over the master service of the same name.
    let mut chosen: Vec<&Arc<Service>> = services.iter().filter(|s| is_master(s)).collect();
    if links {
        chosen.extend(
            services
                .iter()
                .filter(|s| s.metadata.namespace.as_deref() == Some(namespace)),
        );
    }
    for s in chosen {
        let Some(spec) = &s.spec else { continue };
        let ip = spec.cluster_ip.as_deref().unwrap_or_default();
        if ip.is_empty() || ip == "None" || spec.type_.as_deref() == Some("ExternalName") {
            continue;
        }
        let ports = spec.ports.as_deref().unwrap_or_default();
        let Some(first) = ports.first() else { continue };
        let name = variable_name(s.metadata.name.as_deref().unwrap_or_default());
        out.insert(format!("{name}_SERVICE_HOST"), ip.to_owned());
        out.insert(format!("{name}_SERVICE_PORT"), first.port.to_string());
        let shown = if ip.contains(':') {
            format!("[{ip}]")
        } else {
            ip.to_owned()
        };
        for (i, p) in ports.iter().enumerate() {
            if let Some(port_name) = p.name.as_deref().filter(|n| !n.is_empty()) {
                out.insert(
                    format!("{name}_SERVICE_PORT_{}", variable_name(port_name)),
                    p.port.to_string(),
                );
            }
            let protocol = p.protocol.as_deref().unwrap_or("TCP");
            let url = format!("{}://{shown}:{}", protocol.to_lowercase(), p.port);
            if i == 0 {
                out.insert(format!("{name}_PORT"), url.clone());
            }
            let prefix = format!("{name}_PORT_{}_{}", p.port, protocol.to_uppercase());
            out.insert(prefix.clone(), url);
            out.insert(format!("{prefix}_PROTO"), protocol.to_lowercase());
            out.insert(format!("{prefix}_PORT"), p.port.to_string());
            out.insert(format!("{prefix}_ADDR"), ip.to_owned());
        }
    }
    out
}

fn variable_name(s: &str) -> String {
    s.replace('-', "_").to_uppercase()
}

impl From<ObjectError> for String {
    fn from(e: ObjectError) -> Self {
        e.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_links() {
        let read = |t: &str| Arc::new(serde_yaml_ng::from_str::<Service>(t).unwrap());
        let all = [
            read(
                "{metadata: {name: kubernetes, namespace: default}, spec: {clusterIP: 10.96.0.1, ports: [{name: https, port: 443}]}}",
            ),
            read(
                "{metadata: {name: my-db, namespace: n}, spec: {clusterIP: 10.96.0.9, ports: [{port: 53, protocol: UDP}]}}",
            ),
            read(
                "{metadata: {name: headless, namespace: n}, spec: {clusterIP: None, ports: [{port: 1}]}}",
            ),
        ];
        let with = service_variables(&all, "n", true);
        for (k, v) in [
            ("KUBERNETES_SERVICE_HOST", "10.96.0.1"),
            ("KUBERNETES_SERVICE_PORT_HTTPS", "443"),
            ("MY_DB_PORT_53_UDP", "udp://10.96.0.9:53"),
            ("MY_DB_PORT_53_UDP_PROTO", "udp"),
        ] {
            assert_eq!(with.get(k).map(String::as_str), Some(v), "{k}");
        }
        assert!(!with.keys().any(|k| k.starts_with("HEADLESS")));
        let without = service_variables(&all, "n", false);
        assert!(without.contains_key("KUBERNETES_PORT") && !without.contains_key("MY_DB_PORT"));
    }
}
