//! What several controllers need: selectors, owners, pods, expectations and adoption.

pub mod claim;
pub mod expectations;
pub mod pod_control;
pub mod pods;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use keelson_runtime::ObjectKey;
use keelson_runtime::workqueue::WorkQueue;
use kube::Resource;

/// Labels or annotations.
pub type Labels = BTreeMap<String, String>;

static NONE: Labels = Labels::new();

/// The labels of an object, none when absent.
pub fn labels(meta: &ObjectMeta) -> &Labels {
    meta.labels.as_ref().unwrap_or(&NONE)
}

/// The annotations of an object, none when absent.
pub fn annotations(meta: &ObjectMeta) -> &Labels {
    meta.annotations.as_ref().unwrap_or(&NONE)
}

/// The owners of an object.
pub fn owners(meta: &ObjectMeta) -> &[OwnerReference] {
    meta.owner_references.as_deref().unwrap_or_default()
}

/// The owner that controls an object (`metav1.GetControllerOf`).
pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    owners(meta).iter().find(|o| o.controller == Some(true))
}

/// The uid of an object, empty when it has none.
pub fn uid(meta: &ObjectMeta) -> &str {
    meta.uid.as_deref().unwrap_or_default()
}

/// The name of an object, empty when it has none.
pub fn name(meta: &ObjectMeta) -> &str {
    meta.name.as_deref().unwrap_or_default()
}

/// The namespace of an object, empty when it has none.
pub fn namespace(meta: &ObjectMeta) -> &str {
    meta.namespace.as_deref().unwrap_or_default()
}

/// When an object was made.
pub fn created(meta: &ObjectMeta) -> Option<Timestamp> {
    meta.creation_timestamp.as_ref().map(|t| t.0)
}

/// A controller reference to `owner` (`metav1.NewControllerRef`).
pub fn controller_reference<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    let meta = owner.meta();
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: name(meta).to_owned(),
        uid: uid(meta).to_owned(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// The key of the controller of an object, when that is of resource `K`.
pub fn controller_key<K: Resource<DynamicType = ()>>(
    meta: &ObjectMeta,
) -> Option<(ObjectKey, String)> {
    let owner = controller_of(meta)?;
    let group = |api_version: &str| {
        api_version
            .split_once('/')
            .map_or(String::new(), |(g, _)| g.to_owned())
    };
    (owner.kind == K::kind(&()) && group(&owner.api_version) == K::group(&())).then(|| {
        (
            ObjectKey::new(namespace(meta), &owner.name),
            owner.uid.clone(),
        )
    })
}

/// Adds the key of the object to the queue at every change.
pub fn enqueue_all<K: Resource + 'static>(
    informer: &keelson_runtime::informer::Informer<K>,
    queue: &Arc<WorkQueue<ObjectKey>>,
) {
    let queue = queue.clone();
    informer.on_event(move |event| queue.add(ObjectKey::of(event.object().meta())));
}

/// The index that [`candidates`] needs: by the uid of the controller, or by namespace for objects that have none.
pub fn add_owner_index<K: Resource + 'static>(informer: &keelson_runtime::informer::Informer<K>) {
    informer.store().add_index("owner", |object: &K| {
        let meta = object.meta();
        vec![match controller_of(meta) {
            Some(owner) => owner.uid.clone(),
            None => format!("{}/", namespace(meta)),
        }]
    });
}

/// What an owner may claim: what it controls, and what nobody controls in its namespace. The cost does not grow with
/// what belongs to others. Needs [`add_owner_index`].
pub fn candidates<K: Resource + 'static>(
    informer: &keelson_runtime::informer::Informer<K>,
    owner: &ObjectMeta,
) -> Vec<Arc<K>> {
    let mut all = owned(informer, uid(owner));
    all.extend(
        informer
            .store()
            .by_index("owner", &format!("{}/", namespace(owner))),
    );
    all
}

/// What the owner of that uid controls. Needs [`add_owner_index`].
pub fn owned<K: Resource + 'static>(
    informer: &keelson_runtime::informer::Informer<K>,
    owner: &str,
) -> Vec<Arc<K>> {
    informer.store().by_index("owner", owner)
}

/// A label selector that is known to be sound.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Selector {
    requirements: Vec<(String, Requirement)>,
}

#[derive(Clone, Debug, PartialEq)]
enum Requirement {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
}

impl Selector {
    /// From the API's form. An empty selector matches everything.
    ///
    /// # Errors
    /// Says which operator is not one.
    pub fn new(selector: &LabelSelector) -> Result<Self, String> {
        let mut requirements: Vec<_> = selector
            .match_labels
            .iter()
            .flatten()
            .map(|(key, value)| (key.clone(), Requirement::In(vec![value.clone()])))
            .collect();
        for expression in selector.match_expressions.iter().flatten() {
            let values = expression.values.clone().unwrap_or_default();
            let requirement = match expression.operator.as_str() {
                "In" => Requirement::In(values),
                "NotIn" => Requirement::NotIn(values),
                "Exists" => Requirement::Exists,
                "DoesNotExist" => Requirement::DoesNotExist,
                other => return Err(format!("{other:?} is not a valid label selector operator")),
            };
            requirements.push((expression.key.clone(), requirement));
        }
        Ok(Selector { requirements })
    }

    /// Labels that must all be there.
    pub fn of_labels(labels: &Labels) -> Self {
        Selector {
            requirements: labels
                .iter()
                .map(|(key, value)| (key.clone(), Requirement::In(vec![value.clone()])))
                .collect(),
        }
    }

    /// Whether it matches everything.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether it selects an object with these labels.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|(key, requirement)| {
            let value = labels.get(key);
            match requirement {
                Requirement::In(values) => value.is_some_and(|v| values.contains(v)),
                Requirement::NotIn(values) => value.is_none_or(|v| !values.contains(v)),
                Requirement::Exists => value.is_some(),
                Requirement::DoesNotExist => value.is_none(),
            }
        })
    }
}

/// FNV-1a, 32 bits: upstream's choice for template hashes.
pub fn fnv32a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    })
}

/// A number as characters that spell no words (apimachinery `rand.SafeEncodeString` of its decimal form).
pub fn safe_encode(number: u32) -> String {
    const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    number
        .to_string()
        .bytes()
        .map(|b| ALPHABET[b as usize % ALPHABET.len()] as char)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_hash_forms() {
        // FNV's own test vectors.
        assert_eq!(fnv32a(b""), 0x811c_9dc5);
        assert_eq!(fnv32a(b"foobar"), 0xbf9c_f968);
        // '1' is 49, and 49 mod 27 is 22: the alphabet's 23rd character.
        assert_eq!(safe_encode(1), "5");
        assert_eq!(safe_encode(1_234_567_890).len(), 10);
    }

    #[test]
    fn selectors() {
        let labels: Labels = [("app".to_string(), "web".to_string())].into();
        let of = |op: &str, values: &[&str]| {
            let selector = LabelSelector {
                match_expressions: Some(vec![
                    k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement {
                        key: "app".into(),
                        operator: op.into(),
                        values: Some(values.iter().map(|v| v.to_string()).collect()),
                    },
                ]),
                ..Default::default()
            };
            Selector::new(&selector).map(|s| s.matches(&labels))
        };
        assert_eq!(of("In", &["web", "db"]), Ok(true));
        assert_eq!(of("NotIn", &["web"]), Ok(false));
        assert_eq!(of("Exists", &[]), Ok(true));
        assert_eq!(of("DoesNotExist", &[]), Ok(false));
        assert!(of("Near", &[]).is_err());
        assert!(Selector::default().matches(&labels), "empty matches all");
    }
}
