//! A bounded memory of things worked out before.

use std::collections::HashMap;
use std::hash::Hash;

use parking_lot::Mutex;

/// Remembers at least the last `capacity` entries and at most twice as many: a full young generation becomes the
/// old one, and the old one is forgotten; what is asked for again moves to the young one.
pub(super) struct Recent<K, V> {
    capacity: usize,
    generations: Mutex<(HashMap<K, V>, HashMap<K, V>)>,
}

impl<K: Eq + Hash + Clone, V: Clone> Recent<K, V> {
    pub(super) fn new(capacity: usize) -> Self {
        Recent {
            capacity,
            generations: Mutex::default(),
        }
    }

    pub(super) fn get(&self, key: &K) -> Option<V> {
        let mut guard = self.generations.lock();
        if let Some(value) = guard.0.get(key) {
            return Some(value.clone());
        }
        let value = guard.1.remove(key)?;
        Self::insert(&mut guard, self.capacity, key.clone(), value.clone());
        Some(value)
    }

    pub(super) fn put(&self, key: K, value: V) {
        Self::insert(&mut self.generations.lock(), self.capacity, key, value);
    }

    fn insert(
        (young, old): &mut (HashMap<K, V>, HashMap<K, V>),
        capacity: usize,
        key: K,
        value: V,
    ) {
        if young.len() >= capacity {
            *old = std::mem::take(young);
        }
        young.insert(key, value);
    }
}
