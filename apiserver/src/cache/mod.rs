//! The watch cache: one [`Cache`](handle::Cache) per resource, fed by one watch of the store, answers every get, list
//! and watch. An object is decoded and encoded once per write; what readers share are the encoded bytes.
//!
//! - `types`: entries, selections, errors: the vocabulary of callers.
//! - `entry`, `scan`: stored bytes to the bytes sent to clients plus the facts selectors look at.
//! - `core`: the state machine (no I/O, no time of its own): snapshots, recent events, watchers by index.
//! - `window`: the recent past within a core.
//! - `handle`: the asynchronous face: the task that feeds a core, waiting for a revision; `stream`: what a watcher polls.
//! - `token`: continue tokens. `fields`: which field selectors a resource knows. `caches`: one cache per resource.
//!
//! What callers use (all of `verbs` and `registry` go through these):
//!
//! ```text
//! Caches::new(store, specs: Arc<dyn CacheSpecs>) -> Arc<Caches>               // also implements reader::ObjectReader
//! Caches::cache(&GroupResource) -> Result<Arc<Cache>, CacheError>             // made and started at first use
//! Caches::remove(&GroupResource)                                              // ends its watchers
//! Cache::get(namespace, name, Freshness)        -> Result<Option<Arc<Entry>>, CacheError>          (async)
//! Cache::list(&Selection, Freshness, Paging)    -> Result<ListPage, CacheError>                    (async)
//! Cache::watch(Selection, WatchStart, WatchOptions) -> Result<WatchStream, CacheError>             (async)
//! Cache::wait_for(Revision)                     -> Result<(), CacheError>                          (async)
//! ```
//!
//! Writers read the current object with `get(.., Freshness::Any)`, commit to the store guarded by
//! `Entry::revision`, and on `store::Error::Conflict { current }` decode `current` with the resource's
//! [`StorageCodec`](types::StorageCodec) and try again. A commit is acknowledged only after it was queued for the
//! cache, so a get or list with `Freshness::Latest` sees it.

pub mod caches;
mod core;
mod entry;
pub mod fields;
pub mod handle;
mod scan;
mod stream;
#[cfg(test)]
mod tests;
mod token;
pub mod types;
mod window;
