//! The local copy of a resource that an informer keeps: shared objects by key, by namespace and by custom indexes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use kube::Resource;
use parking_lot::RwLock;

use crate::key::ObjectKey;

type IndexFn<K> = Arc<dyn Fn(&K) -> Vec<String> + Send + Sync>;

/// A read-mostly copy of the objects of one resource. Reads take a short shared lock and hand out `Arc`s; nobody may
/// mutate a stored object.
pub struct Store<K> {
    inner: RwLock<Inner<K>>,
}

struct Inner<K> {
    namespaces: HashMap<String, BTreeMap<String, Arc<K>>>,
    len: usize,
    indexes: Vec<Index<K>>,
}

struct Index<K> {
    name: &'static str,
    values: IndexFn<K>,
    objects: HashMap<String, BTreeMap<ObjectKey, Arc<K>>>,
}

impl<K> Default for Store<K> {
    fn default() -> Self {
        Store {
            inner: RwLock::new(Inner {
                namespaces: HashMap::new(),
                len: 0,
                indexes: Vec::new(),
            }),
        }
    }
}

impl<K: Resource> Store<K> {
    /// The object of that key, if it is known.
    pub fn get(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.get_parts(&key.namespace, &key.name)
    }

    /// As [`get`](Store::get), without a key to build. `namespace` is empty for cluster-scoped objects.
    pub fn get_parts(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.inner
            .read()
            .namespaces
            .get(namespace)?
            .get(name)
            .cloned()
    }

    /// Every object; order between namespaces is not defined.
    pub fn list(&self) -> Vec<Arc<K>> {
        let inner = self.inner.read();
        let mut all = Vec::with_capacity(inner.len);
        for objects in inner.namespaces.values() {
            all.extend(objects.values().cloned());
        }
        all
    }

    /// The objects of one namespace, by name.
    pub fn list_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        self.inner
            .read()
            .namespaces
            .get(namespace)
            .map(|objects| objects.values().cloned().collect())
            .unwrap_or_default()
    }

    /// The objects for which the index named `index` gives `value`, by key. An index that nobody added is empty.
    pub fn by_index(&self, index: &str, value: &str) -> Vec<Arc<K>> {
        let inner = self.inner.read();
        let Some(index) = inner.indexes.iter().find(|i| i.name == index) else {
            tracing::error!(index, "lookup by an index that was never added");
            return Vec::new();
        };
        index
            .objects
            .get(value)
            .map(|objects| objects.values().cloned().collect())
            .unwrap_or_default()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.inner.read().len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds an index, filled from what is there already. A second index of the same name changes nothing.
    pub fn add_index(
        &self,
        name: &'static str,
        values: impl Fn(&K) -> Vec<String> + Send + Sync + 'static,
    ) {
        let mut inner = self.inner.write();
        if inner.indexes.iter().any(|i| i.name == name) {
            return;
        }
        let mut index = Index {
            name,
            values: Arc::new(values),
            objects: HashMap::new(),
        };
        for (namespace, objects) in &inner.namespaces {
            for (name, object) in objects {
                index.insert(&ObjectKey::new(namespace, name), object);
            }
        }
        inner.indexes.push(index);
    }

    /// Puts an object in and gives back the one that it replaces.
    pub fn insert(&self, object: Arc<K>) -> Option<Arc<K>> {
        let key = ObjectKey::of(object.meta());
        let inner = &mut *self.inner.write();
        let objects = match inner.namespaces.get_mut(&key.namespace) {
            Some(objects) => objects,
            None => inner.namespaces.entry(key.namespace.clone()).or_default(),
        };
        let old = objects.insert(key.name.clone(), object.clone());
        if old.is_none() {
            inner.len += 1;
        }
        for index in &mut inner.indexes {
            if let Some(old) = &old {
                index.remove(&key, old);
            }
            index.insert(&key, &object);
        }
        old
    }

    /// Takes an object out.
    pub fn remove(&self, key: &ObjectKey) -> Option<Arc<K>> {
        let inner = &mut *self.inner.write();
        let objects = inner.namespaces.get_mut(&key.namespace)?;
        let old = objects.remove(&key.name)?;
        if objects.is_empty() {
            inner.namespaces.remove(&key.namespace);
        }
        inner.len -= 1;
        for index in &mut inner.indexes {
            index.remove(key, &old);
        }
        Some(old)
    }

    /// Every key, in no particular order.
    pub fn keys(&self) -> Vec<ObjectKey> {
        let inner = self.inner.read();
        let mut keys = Vec::with_capacity(inner.len);
        for (namespace, objects) in &inner.namespaces {
            keys.extend(objects.keys().map(|name| ObjectKey::new(namespace, name)));
        }
        keys
    }
}

impl<K> Index<K> {
    fn insert(&mut self, key: &ObjectKey, object: &Arc<K>) {
        for value in (self.values)(object) {
            self.objects
                .entry(value)
                .or_default()
                .insert(key.clone(), object.clone());
        }
    }

    fn remove(&mut self, key: &ObjectKey, object: &Arc<K>) {
        for value in (self.values)(object) {
            if let Some(objects) = self.objects.get_mut(&value) {
                objects.remove(key);
                if objects.is_empty() {
                    self.objects.remove(&value);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;

    fn pod(name: &str, node: &str) -> Arc<Pod> {
        let mut pod = Pod::default();
        pod.metadata.name = Some(name.into());
        pod.metadata.namespace = Some("ns".into());
        pod.spec.get_or_insert_default().node_name = Some(node.into());
        Arc::new(pod)
    }

    fn on_node(store: &Store<Pod>, node: &str) -> Vec<String> {
        store
            .by_index("node", node)
            .iter()
            .filter_map(|p| p.metadata.name.clone())
            .collect()
    }

    #[test]
    fn indexes_follow_changes() {
        let store = Store::default();
        store.insert(pod("a", "n1"));
        store.add_index("node", |p: &Pod| {
            p.spec.iter().filter_map(|s| s.node_name.clone()).collect()
        });
        store.insert(pod("b", "n1"));
        assert_eq!(on_node(&store, "n1"), ["a", "b"]);
        store.insert(pod("a", "n2"));
        assert_eq!(on_node(&store, "n1"), ["b"]);
        assert_eq!(on_node(&store, "n2"), ["a"]);
        store.remove(&ObjectKey::new("ns", "a"));
        assert!(on_node(&store, "n2").is_empty());
        assert_eq!(store.len(), 1);
    }
}
